//! What a decode step is asked (SPEC §1): queries, the optional additive mask A and an earlier mask P, checked once.

use ndarray::{Array4, ArrayView4, Axis};

use super::attended::Attended;
use crate::algorithm::error::Result;
use crate::algorithm::{Detail, Dims, Error, Mask, Row, Storage};

/// The queries of one step; query i sits at absolute position n − m + i.
#[derive(Debug, Clone)]
pub struct Query<'a> {
    /// [b, h, m, d], after RoPE; rounded to the storage type.
    pub q: ArrayView4<'a, f32>,
    /// A, each dimension 1 or that of [b, h, m, n]; values 0, finite or −∞.
    pub attention_mask: Option<ArrayView4<'a, f32>>,
    /// Adds −∞ to A for keys after the query's absolute position.
    pub causal: bool,
    /// Factor of q·k in the attention; `None` means 1 / √d.
    pub scaling: Option<f64>,
    /// P, [b, h, m, n].
    pub previous: Option<&'a Mask>,
}

impl<'a> Query<'a> {
    /// Causal queries, with neither an additive nor an earlier mask.
    pub fn causal(q: ArrayView4<'a, f32>) -> Self {
        Self { q, attention_mask: None, causal: true, scaling: None, previous: None }
    }
}

/// A [`Query`] that fits `dims`.
#[derive(Debug)]
pub struct Checked<'a> {
    /// The sizes, with the queries and keys of this step.
    pub dims: Dims,
    /// [b, h, m, d], contiguous, rounded to the storage type.
    q: Array4<f32>,
    attention_mask: Option<ArrayView4<'a, f32>>,
    causal: bool,
    previous: Option<&'a Mask>,
    /// Factor of q·k.
    pub scaling: f64,
}

fn shape_error(field: &str, found: &[usize], expected: String) -> Error {
    Error::Shape(Detail::new(field, format!("{found:?}"), expected))
}

/// A tensor rounded to the storage type, contiguous. Errors: [`Error::NotFinite`].
pub fn stored(field: &str, tensor: ArrayView4<f32>, storage: Storage) -> Result<Array4<f32>> {
    let rounded = tensor.mapv(|x| storage.round(x));
    if rounded.iter().all(|x| x.is_finite()) {
        return Ok(rounded.as_standard_layout().into_owned());
    }
    match rounded.indexed_iter().find(|(_, x)| !x.is_finite()) {
        None => Ok(rounded),
        Some(((b, head, position, channel), x)) => {
            let field = format!("{field}[{b}, {head}, {position}, {channel}]");
            let expected = format!("finite numbers in {storage}");
            Err(Error::NotFinite(Detail::new(field, format!("{x:?}"), expected)))
        }
    }
}

/// Checks a shape; `None` stands for any size above 0. Errors: [`Error::Shape`].
pub fn check_shape(field: &str, found: &[usize], expected: [Option<usize>; 4]) -> Result<()> {
    let fits = found
        .iter()
        .zip(expected)
        .all(|(&size, wanted)| size > 0 && wanted.is_none_or(|wanted| wanted == size));
    if fits {
        return Ok(());
    }
    let sizes = expected.map(|size| size.map_or("any".to_owned(), |size| size.to_string()));
    Err(shape_error(field, found, format!("[{}], none of them 0", sizes.join(", "))))
}

impl<'a> Checked<'a> {
    /// Checks a query. Errors: [`Error::Shape`] for sizes that do not fit `dims` (also m > n), [`Error::NotFinite`] for NaN
    /// or ±∞ in q, NaN or +∞ in A, and a scaling that is not finite.
    pub fn new(query: &Query<'a>, dims: Dims, storage: Storage) -> Result<Self> {
        let Dims { batch, heads, head_dim, keys, .. } = dims;
        check_shape("q", query.q.shape(), [Some(batch), Some(heads), None, Some(head_dim)])?;
        let dims = Dims { queries: query.q.dim().2, ..dims };
        if dims.queries > keys {
            return Err(shape_error(
                "q",
                query.q.shape(),
                format!("at most as many queries as the {keys} keys"),
            ));
        }
        let (b, h, m, n) = dims.mask_shape();
        if let Some(mask) = &query.attention_mask {
            let fits = mask.shape().iter().zip([b, h, m, n]).all(|(&size, full)| size == 1 || size == full);
            if !fits {
                let expected = format!("[{b}, {h}, {m}, {n}], any of them 1");
                return Err(shape_error("attention_mask", mask.shape(), expected));
            }
            if let Some((index, x)) = mask.indexed_iter().find(|(_, x)| x.is_nan() || **x == f32::INFINITY) {
                let field = format!("attention_mask{index:?}");
                let expected = "0, a finite number or -inf";
                return Err(Error::NotFinite(Detail::new(field, format!("{x:?}"), expected)));
            }
        }
        if let Some(previous) = query.previous
            && previous.weights().dim() != dims.mask_shape()
        {
            return Err(shape_error(
                "previous",
                previous.weights().shape(),
                format!("{:?}", dims.mask_shape()),
            ));
        }
        let scaling = query.scaling.unwrap_or_else(|| 1.0 / (head_dim as f64).sqrt());
        if !(scaling as f32).is_finite() {
            let expected = "a number that is finite in f32";
            return Err(Error::NotFinite(Detail::new("scaling", format!("{scaling:?}"), expected)));
        }
        let q = stored("q", query.q.view(), storage)?;
        Ok(Self {
            dims,
            q,
            attention_mask: query.attention_mask,
            causal: query.causal,
            previous: query.previous,
            scaling,
        })
    }

    /// What P attends to, for each row in row-major order.
    pub fn before(&self) -> Vec<Attended> {
        let row = |row| {
            let mut attended = Attended::default();
            self.previous.iter().flat_map(|previous| previous.row(row)).for_each(|key| attended.push(key));
            attended
        };
        self.dims.rows().map(row).collect()
    }

    /// One query, [d].
    pub fn q(&self, (batch, head, query): Row) -> &[f32] {
        let Dims { heads, queries, head_dim, .. } = self.dims;
        let start = ((batch * heads + head) * queries + query) * head_dim;
        self.q.as_slice().and_then(|q| q.get(start..start + head_dim)).unwrap_or_default()
    }

    /// How many keys causality leaves to a query.
    pub fn visible(&self, query: usize) -> usize {
        if self.causal { self.dims.position(query) + 1 } else { self.dims.keys }
    }

    /// Whether A holds anything but causality.
    pub fn has_mask(&self) -> bool {
        self.attention_mask.is_some()
    }

    /// A at one key.
    #[inline]
    pub fn additive(&self, (batch, head, query): Row, key: usize) -> f32 {
        if key >= self.visible(query) {
            return f32::NEG_INFINITY;
        }
        let Some(mask) = &self.attention_mask else { return 0.0 };
        let at = |axis: usize, index: usize| if mask.shape()[axis] == 1 { 0 } else { index };
        mask[[at(0, batch), at(1, head), at(2, query), at(3, key)]]
    }

    /// Whether A holds different values for different heads.
    pub fn mask_differs_between_heads(&self) -> bool {
        self.attention_mask.is_some_and(|mask| {
            let mut heads = mask.axis_iter(Axis(1));
            let first = heads.next();
            heads.any(|head| Some(head) != first)
        })
    }
}
