//! Dense attention of one decode step in libtorch, on CPU and on as many threads as the engine uses: what it is compared with.
//! `scaled_dot_product_attention` can be asked in several ways for the same numbers. All are measured; the fastest counts.

use doublecheck::cases::recipe::Generated;
use doublecheck::torch::to_device;
use ndarray::{Array4, s};
use tch::{Device, TchError, Tensor};

use super::{Failure, HEAD_DIM, HEADS, KV_HEADS};

/// How grouped heads are put.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Way {
    /// The argument `enable_gqa`.
    EnableGqa,
    /// KV heads as batch entries, each expanded to its query heads without a copy.
    Expanded,
    /// The query heads of a KV head as queries of one head: without a causal mask they are the same.
    AsQueries,
}

impl Way {
    pub const ALL: [Self; 3] = [Self::EnableGqa, Self::Expanded, Self::AsQueries];

    pub fn name(self) -> &'static str {
        match self {
            Self::EnableGqa => "enable_gqa",
            Self::Expanded => "expanded heads",
            Self::AsQueries => "heads as queries",
        }
    }
}

/// q [1, h, 1, d], k and v [1, hk, n, d].
pub struct Dense {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Dense {
    /// The first n keys.
    pub fn new(tensors: &Generated, keys: usize) -> Result<Self, Failure> {
        tch::set_num_threads(i32::try_from(rayon::current_num_threads())?);
        let first = |x: &Array4<f32>| to_device(&x.slice(s![.., .., ..keys, ..]).to_owned(), Device::Cpu);
        let dense = Self {
            q: to_device(&tensors.q.slice(s![.., .., ..1, ..]).to_owned(), Device::Cpu)?,
            k: first(&tensors.k)?,
            v: first(&tensors.v)?,
        };
        let expected = dense.attend(Way::EnableGqa)?;
        for way in Way::ALL {
            let found = dense.attend(way)?;
            assert!(found.f_allclose(&expected, 1e-4, 1e-5, false)?, "{} gives other numbers", way.name());
        }
        Ok(dense)
    }

    /// The output: [1, h, 1, d].
    pub fn attend(&self, way: Way) -> Result<Tensor, TchError> {
        let [h, hk, d] = [HEADS, KV_HEADS, HEAD_DIM].map(|size| size as i64);
        let group = h / hk;
        let attend = |q: &Tensor, k: &Tensor, v: &Tensor, gqa| {
            Tensor::f_scaled_dot_product_attention(q, k, v, None::<&Tensor>, 0.0, false, None, gqa)
        };
        match way {
            Way::EnableGqa => attend(&self.q, &self.k, &self.v, true),
            Way::Expanded => {
                let n = self.k.size()[2];
                let q = self.q.f_view([hk, group, 1, d])?;
                let expand = |x: &Tensor| x.f_transpose(0, 1)?.f_expand([hk, group, n, d], false);
                attend(&q, &expand(&self.k)?, &expand(&self.v)?, false)?.f_reshape([1, h, 1, d])
            }
            Way::AsQueries => {
                let q = self.q.f_view([1, hk, group, d])?;
                attend(&q, &self.k, &self.v, false)?.f_reshape([1, h, 1, d])
            }
        }
    }
}
