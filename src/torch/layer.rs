//! One attention layer's q, k, v and A on a device, and moving numbers there and back. Query heads are kept as [hk, g] beside the
//! KV heads they read, so that KV heads are never repeated.

use ndarray::{Array4, Axis};
use tch::{Device, Kind, TchError, Tensor};

use super::error::Result;
use crate::algorithm::{Detail, Dims, Error, HeadMode, Inputs, Storage};

/// q, k and v on a device, in the storage type, and A.
pub struct Layer {
    /// The sizes.
    pub dims: Dims,
    /// [b, hk, g, m, d]: query heads beside the KV head they read.
    pub q: Tensor,
    /// [b·hk, n, d]
    pub k: Tensor,
    /// [b·hk, n, dv]
    pub v: Tensor,
    /// A in f32, broadcastable to [b, h, m, n]; `None` where it is 0 everywhere.
    pub additive: Option<Tensor>,
    /// Whether A differs between heads.
    pub additive_differs: bool,
    /// Head weights w of the rule `relu` in f32, [b, h, m, 1]; `None` where they are 1.
    pub head_weights: Option<Tensor>,
    /// Whether head weights differ between heads.
    pub head_weights_differ: bool,
    /// Whether numbers are so large that labels may be infinite; otherwise labels that are not finite are NaN.
    pub labels_may_overflow: bool,
    /// Factor of q·k in the attention.
    pub scaling: f64,
}

impl Layer {
    /// A layer from q [b, h, m, d], k [b, hk, n, d] and v [b, hk, n, dv], of one type on one device, and A in f32, of four dimensions that
    /// broadcast to [b, h, m, n]; `None` where it is 0 everywhere.
    ///
    /// Errors: those of libtorch, for other shapes too.
    pub fn new(q: &Tensor, k: &Tensor, v: &Tensor, additive: Option<Tensor>, scaling: f64) -> Result<Self> {
        let ((b, h, m, d), (_, hk, n, _), dv) = (q.size4()?, k.size4()?, v.size4()?.3);
        let size = |size: i64| size as usize;
        Ok(Self {
            dims: Dims {
                batch: size(b),
                heads: size(h),
                kv_heads: size(hk),
                queries: size(m),
                keys: size(n),
                head_dim: size(d),
                value_dim: size(dv),
            },
            q: q.f_reshape([b, hk, h / hk, m, d])?,
            k: k.f_reshape([b * hk, n, d])?,
            v: v.f_reshape([b * hk, n, dv])?,
            additive_differs: additive.as_ref().is_some_and(|additive| additive.size()[1] != 1),
            additive,
            head_weights: None,
            head_weights_differ: false,
            // Not known without reading the numbers.
            labels_may_overflow: true,
            scaling,
        })
    }

    /// Moves inputs to a device. Errors: those of libtorch.
    pub fn of_inputs(inputs: &Inputs, device: Device) -> Result<Self> {
        let (dims, parts) = (inputs.dims(), inputs.parts());
        let storage = kind(inputs.storage());
        let tensor = |values| -> Result<Tensor> { Ok(to_device(values, device)?.f_to_kind(storage)?) };
        let mut additive = match &parts.attention_mask {
            Some(mask) => Some(to_device(mask, device)?),
            None => None,
        };
        // The last query sees every key, so that a single query needs no causal mask.
        if parts.causal && dims.queries > 1 {
            let causal = causal(dims.queries as i64, dims.keys as i64, Kind::Float, device)?;
            additive = Some(match additive {
                Some(mask) => mask.f_add(&causal)?,
                None => causal,
            });
        }
        let largest = parts.q.iter().chain(&parts.k).fold(0.0f32, |largest, x| largest.max(x.abs()));
        let (q, k, v) = (tensor(&parts.q)?, tensor(&parts.k)?, tensor(&parts.v)?);
        let head_weights = match inputs.head_weights() {
            Some(weights) => Some(to_device(&weights.clone().insert_axis(Axis(3)), device)?),
            None => None,
        };
        Ok(Self {
            head_weights,
            head_weights_differ: inputs.head_weights_differ_between_heads(),
            additive_differs: inputs.attention_mask_differs_between_heads(),
            // |label| is below twice the difference of two numbers plus a third: less than 16 times the largest number.
            labels_may_overflow: f64::from(largest) > inputs.storage().largest() / 16.0,
            ..Self::new(&q, &k, &v, additive, inputs.scaling())?
        })
    }

    /// The same keys and values with some of the queries, by their indices [m']. Errors: those of libtorch.
    pub fn with_queries(&self, rows: &Tensor) -> Result<Self> {
        let additive = match &self.additive {
            // A that is the same for all queries stays so.
            Some(additive) if additive.size()[2] > 1 => Some(additive.f_index_select(2, rows)?),
            Some(additive) => Some(additive.shallow_clone()),
            None => None,
        };
        let head_weights = match &self.head_weights {
            Some(weights) => Some(weights.f_index_select(2, rows)?),
            None => None,
        };
        Ok(Self {
            dims: Dims { queries: rows.numel(), ..self.dims },
            q: self.q.f_index_select(3, rows)?,
            k: self.k.shallow_clone(),
            v: self.v.shallow_clone(),
            additive,
            head_weights,
            ..*self
        })
    }

    /// Refuses `summed-labels` with an additive mask or head weights that differ between heads.
    pub fn check(&self, heads: HeadMode) -> Result<()> {
        if heads == HeadMode::SummedLabels && (self.additive_differs || self.head_weights_differ) {
            let expected = "an attention_mask and head_weights shared by all heads";
            return Err(Error::HeadMode(Detail::new("heads", "summed-labels", expected)).into());
        }
        Ok(())
    }

    /// The device that holds it.
    pub fn device(&self) -> Device {
        self.q.device()
    }

    /// Shape of scores and masks, [b, h, m, n].
    pub fn mask_shape(&self) -> [i64; 4] {
        let (b, h, m, n) = self.dims.mask_shape();
        [b as i64, h as i64, m as i64, n as i64]
    }
}

/// The libtorch type of a storage type.
pub fn kind(storage: Storage) -> Kind {
    match storage {
        Storage::F32 => Kind::Float,
        Storage::F16 => Kind::Half,
        Storage::Bf16 => Kind::BFloat16,
    }
}

/// A tensor of f32 numbers from the host. Errors: those of libtorch.
pub fn to_device(values: &Array4<f32>, device: Device) -> Result<Tensor> {
    let shape: Vec<i64> = values.shape().iter().map(|&size| size as i64).collect();
    let values = values.as_standard_layout();
    let flat = values.as_slice().unwrap_or_default();
    Ok(Tensor::f_from_slice(flat)?.f_reshape(shape)?.f_to_device(device)?)
}

/// The numbers of a tensor with four dimensions. Errors: those of libtorch; another number of dimensions.
pub fn to_host(tensor: &Tensor) -> Result<Array4<f32>> {
    let shape = tensor.size();
    if shape.len() != 4 {
        return Err(TchError::Shape(format!("found {shape:?}, expected four dimensions")).into());
    }
    let tensor = tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
    let mut values = vec![0.0f32; tensor.numel()];
    tensor.f_copy_data(&mut values, tensor.numel())?;
    let shape = [0, 1, 2, 3].map(|axis| shape[axis] as usize);
    Ok(Array4::from_shape_vec(shape, values).map_err(|error| TchError::Shape(error.to_string()))?)
}

/// −∞ after each query's absolute position: [1, 1, m, n]. Errors: those of libtorch.
pub fn causal(queries: i64, keys: i64, kind: Kind, device: Device) -> Result<Tensor> {
    let later = Tensor::f_full([1, 1, queries, keys], f64::NEG_INFINITY, (kind, device))?;
    Ok(later.f_triu(keys - queries + 1)?)
}

/// A matrix product of [b, i, j] and [b, j, k] that is summed and returned in f32 whatever the inputs' types. Errors: those of
/// libtorch.
pub fn product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let of_one_type = a.kind() == b.kind();
    Ok(if of_one_type && a.kind() == Kind::Float {
        a.f_bmm(b)?
    } else if of_one_type && a.device().is_cuda() {
        a.f_bmm_dtype(b, Kind::Float)?
    } else {
        a.f_to_kind(Kind::Float)?.f_bmm(&b.f_to_kind(Kind::Float)?)?
    })
}
