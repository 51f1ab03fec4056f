//! What an attention layer is given (SPEC §1): q, k, v, the optional additive mask A and the scaling, checked
//! once so that every step after it may rely on them.

use std::borrow::Cow;

use ndarray::{Array3, Array4, ArrayView2, Axis, s};

use super::error::{Detail, Error, Result};
use super::lengths::Lengths;
use super::storage::Storage;

/// One row of a mask or an output: batch entry, query head, query.
pub type Row = (usize, usize, usize);

/// The sizes of SPEC §1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// b: batch entries
    pub batch: usize,
    /// h: query heads
    pub heads: usize,
    /// hk: KV heads
    pub kv_heads: usize,
    /// m: query positions
    pub queries: usize,
    /// n: key positions
    pub keys: usize,
    /// d: head dimension of q and k
    pub head_dim: usize,
    /// dv: head dimension of v
    pub value_dim: usize,
}

impl Dims {
    /// g: how many query heads read one KV head.
    pub fn group_size(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The KV head that a query head reads (SPEC §2.3): each KV head serves g consecutive query heads.
    pub fn kv_head(&self, head: usize) -> usize {
        head / self.group_size()
    }

    /// The absolute position of a query, n − m + i.
    pub fn position(&self, query: usize) -> usize {
        self.keys - self.queries + query
    }

    /// Shape of a mask: [b, h, m, n].
    pub fn mask_shape(&self) -> (usize, usize, usize, usize) {
        (self.batch, self.heads, self.queries, self.keys)
    }

    /// Shape of an output: [b, h, m, dv].
    pub fn output_shape(&self) -> (usize, usize, usize, usize) {
        (self.batch, self.heads, self.queries, self.value_dim)
    }

    /// About how many multiplications it takes to score every key for every row.
    pub fn operations(&self) -> usize {
        // Sizes that a file declares are asked for this before they are checked.
        let sizes = [self.heads, self.queries, self.keys, self.head_dim.max(self.value_dim)];
        sizes.into_iter().fold(self.batch, usize::saturating_mul)
    }

    /// Every (batch, head, query), in row-major order.
    pub fn rows(&self) -> impl Iterator<Item = Row> + use<> {
        let Dims { batch, heads, queries, .. } = *self;
        (0..batch * heads * queries)
            .map(move |row| (row / (heads * queries), row / queries % heads, row % queries))
    }
}

/// Unchecked parts of [`Inputs`].
#[derive(Debug, Clone, PartialEq)]
pub struct InputParts {
    /// [b, h, m, d], after RoPE.
    pub q: Array4<f32>,
    /// [b, hk, n, d], after RoPE.
    pub k: Array4<f32>,
    /// [b, hk, n, dv].
    pub v: Array4<f32>,
    /// A, each dimension 1 or that of [b, h, m, n]; values 0, finite or −∞.
    pub attention_mask: Option<Array4<f32>>,
    /// Adds −∞ to A for keys after the query's absolute position.
    pub causal: bool,
    /// The type that q, k and v are rounded to before use.
    pub storage: Storage,
    /// Factor of q·k in the attention; `None` means 1 / √d.
    pub scaling: Option<f64>,
}

/// Checked inputs of one attention layer. q, k and v hold values of the storage type, in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub struct Inputs {
    parts: InputParts,
    dims: Dims,
    /// w of the rule `relu`, [b, h, m].
    head_weights: Option<Array3<f32>>,
    lengths: Option<Lengths>,
}

impl Inputs {
    /// Rounds q, k and v to the storage type and checks everything.
    ///
    /// Errors: [`Error::Shape`] for sizes that are zero or do not fit (also m > n: query i sits at n − m + i);
    /// [`Error::NotFinite`] for NaN or ±∞ in q, k or v (also after rounding), NaN or +∞ in A, and a scaling
    /// that is not finite.
    pub fn new(mut parts: InputParts) -> Result<Self> {
        let dims = check_shapes(&parts)?;
        let storage = parts.storage;
        for (name, tensor) in [("q", &mut parts.q), ("k", &mut parts.k), ("v", &mut parts.v)] {
            if !tensor.is_standard_layout() {
                *tensor = tensor.as_standard_layout().into_owned();
            }
            if storage != Storage::F32 {
                tensor.mapv_inplace(|x| storage.round(x));
            }
            check_values(name, tensor, |x| x.is_finite(), &format!("finite numbers in {storage}"))?;
        }
        if let Some(mask) = &parts.attention_mask {
            let allowed = |x: f32| x < f32::INFINITY;
            check_values("attention_mask", mask, allowed, "0, a finite number or -inf")?;
        }
        if let Some(scaling) = parts.scaling
            && !(scaling as f32).is_finite()
        {
            let found = format!("{scaling:?}");
            return Err(Error::NotFinite(Detail::new("scaling", found, "a number that is finite in f32")));
        }
        Ok(Self { parts, dims, head_weights: None, lengths: None })
    }

    /// The inputs with head weights [b, h, m], which the rule `relu` reads; without them every weight is 1.
    ///
    /// Errors: [`Error::Shape`] for another shape, [`Error::NotFinite`] for NaN or ±∞.
    pub fn with_head_weights(mut self, weights: Option<Array3<f32>>) -> Result<Self> {
        if let Some(weights) = &weights {
            let (b, h, m, _) = self.dims.mask_shape();
            if weights.dim() != (b, h, m) {
                let found = format!("{:?}", weights.shape());
                return Err(Error::Shape(Detail::new("head_weights", found, format!("[{b}, {h}, {m}]"))));
            }
            if let Some(((b, h, i), x)) = weights.indexed_iter().find(|(_, x)| !x.is_finite()) {
                let (field, found) = (format!("head_weights[{b}, {h}, {i}]"), format!("{x:?}"));
                return Err(Error::NotFinite(Detail::new(field, found, "finite numbers")));
            }
        }
        self.head_weights = weights;
        Ok(self)
    }

    /// w of the rule `relu`, [b, h, m], where it was given.
    pub fn head_weights(&self) -> Option<&Array3<f32>> {
        self.head_weights.as_ref()
    }

    /// w of one row.
    pub fn head_weight(&self, (batch, head, query): Row) -> f32 {
        self.head_weights.as_ref().map_or(1.0, |weights| weights[[batch, head, query]])
    }

    /// The inputs as a batch of entries of these lengths; without them every entry has all n keys. What k and v hold beyond is
    /// forgotten: it is 0 here, and what [`Lengths::padding`] says where a call is asked.
    ///
    /// Errors: [`Error::Shape`] for another number of lengths than b, or one above n.
    pub fn with_lengths(mut self, lengths: Option<Lengths>) -> Result<Self> {
        if let Some(lengths) = &lengths {
            lengths.check(&self.dims)?;
            lengths.fill(&mut self.parts.k, |_| 0.0);
            lengths.fill(&mut self.parts.v, |_| 0.0);
        }
        self.lengths = lengths;
        Ok(self)
    }

    /// How many keys each entry has, where that was given.
    pub fn lengths(&self) -> Option<&Lengths> {
        self.lengths.as_ref()
    }

    /// k as it is asked: with its padding, where there is any.
    pub fn padded_keys(&self) -> Cow<'_, Array4<f32>> {
        self.padded(&self.parts.k)
    }

    /// v as it is asked: with its padding, where there is any.
    pub fn padded_values(&self) -> Cow<'_, Array4<f32>> {
        self.padded(&self.parts.v)
    }

    fn padded<'a>(&self, tensor: &'a Array4<f32>) -> Cow<'a, Array4<f32>> {
        match &self.lengths {
            None => Cow::Borrowed(tensor),
            Some(lengths) => Cow::Owned(lengths.padded(tensor, self.parts.storage)),
        }
    }

    /// One entry of a batch alone: its last queries, from `first_query` on, and its first `keys` keys; at least one of each,
    /// and no more queries than keys.
    pub(crate) fn entry(&self, batch: usize, first_query: usize, keys: usize) -> Self {
        let own = batch..batch + 1;
        let InputParts { q, k, v, attention_mask, .. } = &self.parts;
        let attention_mask = attention_mask.as_ref().map(|mask| {
            let range = |axis: usize, start: usize, end: usize| {
                if mask.shape()[axis] == 1 { 0..1 } else { start..end }
            };
            let (entry, queries, keys) =
                (range(0, batch, batch + 1), range(2, first_query, self.dims.queries), range(3, 0, keys));
            mask.slice(s![entry, .., queries, keys]).to_owned()
        });
        let parts = InputParts {
            q: q.slice(s![own.clone(), .., first_query.., ..]).to_owned(),
            k: k.slice(s![own.clone(), .., ..keys, ..]).to_owned(),
            v: v.slice(s![own.clone(), .., ..keys, ..]).to_owned(),
            attention_mask,
            ..self.parts
        };
        let weights = self.head_weights.as_ref();
        Self {
            parts,
            dims: Dims { batch: 1, queries: self.dims.queries - first_query, keys, ..self.dims },
            head_weights: weights.map(|weights| weights.slice(s![own, .., first_query..]).to_owned()),
            lengths: None,
        }
    }

    /// The sizes.
    pub fn dims(&self) -> Dims {
        self.dims
    }

    /// The parts as given, q, k and v rounded to the storage type.
    pub fn parts(&self) -> &InputParts {
        &self.parts
    }

    /// The storage type.
    pub fn storage(&self) -> Storage {
        self.parts.storage
    }

    /// Factor of q·k in the attention.
    pub fn scaling(&self) -> f64 {
        let default = || 1.0 / (self.dims.head_dim as f64).sqrt();
        self.parts.scaling.unwrap_or_else(default)
    }

    /// q of one query head: [m, d].
    pub fn queries(&self, batch: usize, head: usize) -> ArrayView2<'_, f32> {
        self.parts.q.slice(s![batch, head, .., ..])
    }

    /// The keys that a query head reads: [n, d].
    pub fn keys(&self, batch: usize, head: usize) -> ArrayView2<'_, f32> {
        self.parts.k.slice(s![batch, self.dims.kv_head(head), .., ..])
    }

    /// The values that a query head reads: [n, dv].
    pub fn values(&self, batch: usize, head: usize) -> ArrayView2<'_, f32> {
        self.parts.v.slice(s![batch, self.dims.kv_head(head), .., ..])
    }

    /// Whether A holds different values for different heads.
    pub fn attention_mask_differs_between_heads(&self) -> bool {
        let Some(mask) = &self.parts.attention_mask else {
            return false;
        };
        let mut heads = mask.axis_iter(Axis(1));
        let first = heads.next();
        heads.any(|head| Some(head) != first)
    }

    /// Whether the head weights hold different values for different heads.
    pub fn head_weights_differ_between_heads(&self) -> bool {
        let Some(weights) = &self.head_weights else {
            return false;
        };
        let mut heads = weights.axis_iter(Axis(1));
        let first = heads.next();
        heads.any(|head| Some(head) != first)
    }

    /// A for one query: 0, finite or −∞ for each key.
    pub fn additive(&self, batch: usize, head: usize, query: usize) -> Additive<'_> {
        let last_key = if self.parts.causal { self.dims.position(query) } else { usize::MAX };
        let row = self.parts.attention_mask.as_ref().map(|mask| {
            let at = |axis: usize, index: usize| if mask.shape()[axis] == 1 { 0 } else { index };
            mask.slice(s![at(0, batch), at(1, head), at(2, query), ..])
        });
        Additive { row, last_key }
    }
}

/// One row of A.
#[derive(Debug, Clone, Copy)]
pub struct Additive<'a> {
    row: Option<ndarray::ArrayView1<'a, f32>>,
    last_key: usize,
}

impl Additive<'_> {
    /// A at one key.
    #[inline]
    pub fn at(&self, key: usize) -> f32 {
        if key > self.last_key {
            return f32::NEG_INFINITY;
        }
        match &self.row {
            None => 0.0,
            Some(row) if row.len() == 1 => row[0],
            Some(row) => row[key],
        }
    }

    /// How many of the first keys a causal mask leaves; A is −∞ at all others.
    pub fn visible(&self, keys: usize) -> usize {
        self.last_key.saturating_add(1).min(keys)
    }

    /// Adds A to the scores of all keys.
    pub fn add_to(&self, scores: &mut [f64]) {
        let visible = self.visible(scores.len());
        let (scores, excluded) = scores.split_at_mut(visible);
        excluded.fill(f64::NEG_INFINITY);
        match &self.row {
            None => {}
            Some(row) if row.len() == 1 => scores.iter_mut().for_each(|score| *score += f64::from(row[0])),
            Some(row) => scores.iter_mut().zip(row).for_each(|(score, &a)| *score += f64::from(a)),
        }
    }
}

/// Larger tensors are refused rather than exhausting memory: 2^30 numbers, 4 GiB in f32.
pub(crate) const LARGEST_TENSOR: usize = 1 << 30;

fn check_shapes(parts: &InputParts) -> Result<Dims> {
    let shape = |field: &str, found: &[usize], expected: String| {
        Err(Error::Shape(Detail::new(field, format!("{found:?}"), expected)))
    };
    let (q, k, v) = (parts.q.shape(), parts.k.shape(), parts.v.shape());
    for (name, found) in [("q", q), ("k", k), ("v", v)] {
        if found.contains(&0) {
            return shape(name, found, "no empty dimension".into());
        }
    }
    let dims = Dims {
        batch: q[0],
        heads: q[1],
        kv_heads: k[1],
        queries: q[2],
        keys: k[2],
        head_dim: q[3],
        value_dim: v[3],
    };
    if k[0] != dims.batch || k[3] != dims.head_dim {
        return shape("k", k, format!("[{}, hk, n, {}] to fit q", dims.batch, dims.head_dim));
    }
    if v[..3] != k[..3] {
        return shape("v", v, format!("[{}, {}, {}, dv] to fit k", k[0], k[1], k[2]));
    }
    if !dims.heads.is_multiple_of(dims.kv_heads) {
        return shape("k", k, format!("a number of KV heads that divides the {} heads", q[1]));
    }
    if dims.queries > dims.keys {
        return shape("q", q, format!("at most as many queries as the {} keys", dims.keys));
    }
    let (b, h, m, n) = dims.mask_shape();
    for (field, size) in [("mask", n), ("output", dims.value_dim)] {
        let length = [b, h, m, size].iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        if length.is_none_or(|length| length > LARGEST_TENSOR) {
            return shape(field, &[b, h, m, size], "at most 2^30 numbers".into());
        }
    }
    if let Some(mask) = &parts.attention_mask {
        check_broadcast("attention_mask", mask.shape(), dims)?;
    }
    Ok(dims)
}

fn check_broadcast(field: &str, found: &[usize], dims: Dims) -> Result<()> {
    let (b, h, m, n) = dims.mask_shape();
    let fits = found.iter().zip([b, h, m, n]).all(|(&size, full)| size == 1 || size == full);
    if fits {
        return Ok(());
    }
    let expected = format!("[{b}, {h}, {m}, {n}], any of them 1");
    Err(Error::Shape(Detail::new(field, format!("{found:?}"), expected)))
}

fn check_values(
    field: &str,
    tensor: &Array4<f32>,
    allowed: impl Fn(f32) -> bool + Sync,
    expected: &str,
) -> Result<()> {
    if tensor.iter().all(|&x| allowed(x)) {
        return Ok(());
    }
    let wrong = tensor.indexed_iter().find(|&(_, &x)| !allowed(x));
    match wrong {
        None => Ok(()),
        Some(((b, h, i, j), x)) => {
            let field = format!("{field}[{b}, {h}, {i}, {j}]");
            Err(Error::NotFinite(Detail::new(field, format!("{x:?}"), expected)))
        }
    }
}
