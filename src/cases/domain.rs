//! The domain of an implementation: which sizes and types it may be asked for (`docs/PROTOCOL.md`, `domain`). A kernel that
//! is compiled for d = 64 and 128 says so here, and random cases, goldens and shrinking stay inside.
//!
//! A domain holds one constraint for each quantity, all of them optional. Several domains are alternatives: a call must fit
//! one of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::sequence::{Call, Instance};
use crate::algorithm::{Detail, Dims, HeavySize, Selection, Storage};

/// Sizes beyond this are allowed, and asked for in no random case. A constraint that allows no smaller one leaves nothing to ask.
const LARGEST: usize = 1 << 20;

/// The most numbers that a tensor or a mask of the smallest call of a domain may have.
const MOST_NUMBERS: usize = 1 << 28;

/// Where a wanted value is not allowed, one of this many smallest allowed values is drawn instead.
const DRAWN: usize = 8;

/// A size that a domain may constrain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantity {
    /// b
    Batch,
    /// h
    Heads,
    /// hk
    KvHeads,
    /// g = h / hk
    Group,
    /// m
    Queries,
    /// n
    Keys,
    /// d
    HeadDim,
    /// dv; `"d"` ties it to the head dimension
    ValueDim,
    /// G
    GroupFactor,
    /// r = d / G
    LabelChannels,
    /// H as it is given; a fraction resolved at the call's number of keys
    HeavySize,
    /// B
    LabelBits,
    /// Keys of a page, for keys and values in pages
    PageSize,
}

impl Quantity {
    /// The name in a domain.
    pub fn name(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::Heads => "heads",
            Self::KvHeads => "kv_heads",
            Self::Group => "group",
            Self::Queries => "queries",
            Self::Keys => "keys",
            Self::HeadDim => "head_dim",
            Self::ValueDim => "value_dim",
            Self::GroupFactor => "group_factor",
            Self::LabelChannels => "label_channels",
            Self::HeavySize => "heavy_size",
            Self::LabelBits => "label_bits",
            Self::PageSize => "page_size",
        }
    }
}

/// Which values a quantity may have; at least one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct Constraint {
    from: usize,
    to: Option<usize>,
    multiple_of: usize,
    /// Ascending, each once.
    list: Option<Vec<usize>>,
}

impl Constraint {
    /// Only these values. Errors: an empty list, 0 among them, or none up to 2^20.
    pub fn list(values: &[usize]) -> Result<Self, Detail> {
        let mut list = values.to_vec();
        list.sort_unstable();
        list.dedup();
        if list.first().is_none_or(|&least| least == 0 || least > LARGEST) {
            let expected = format!("at least one number up to {LARGEST}, all of at least 1");
            return Err(Detail::new("list", format!("{values:?}"), expected));
        }
        Ok(Self { from: 1, to: None, multiple_of: 1, list: Some(list) })
    }

    /// Multiples of `multiple_of` within a range, both ends included. Errors: where there are none.
    pub fn range(from: usize, to: Option<usize>, multiple_of: usize) -> Result<Self, Detail> {
        let constraint = Self { from: from.max(1), to, multiple_of: multiple_of.max(1), list: None };
        if multiple_of > 0 && constraint.values().next().is_some() {
            return Ok(constraint);
        }
        let found = format!(
            "from {from} to {}, multiple_of {multiple_of}",
            to.map_or("any".into(), |to| to.to_string())
        );
        Err(Detail::new("range", found, format!("a range that holds a multiple up to {LARGEST}")))
    }

    /// Whether a value is allowed.
    pub fn allows(&self, value: usize) -> bool {
        match &self.list {
            Some(list) => list.binary_search(&value).is_ok(),
            None => {
                value >= self.from
                    && self.to.is_none_or(|to| value <= to)
                    && value.is_multiple_of(self.multiple_of)
            }
        }
    }

    /// The allowed values up to 2^20, ascending.
    pub fn values(&self) -> Box<dyn Iterator<Item = usize> + '_> {
        match &self.list {
            Some(list) => Box::new(list.iter().copied().take_while(|&value| value <= LARGEST)),
            None => match self.from.checked_next_multiple_of(self.multiple_of) {
                None => Box::new(std::iter::empty()),
                Some(first) => {
                    let last = self.to.unwrap_or(LARGEST).min(LARGEST);
                    Box::new((first..=last).step_by(self.multiple_of))
                }
            },
        }
    }

    /// The largest allowed value that is not above another.
    fn at_most(&self, most: usize) -> Option<usize> {
        match &self.list {
            Some(list) => list[..list.partition_point(|&value| value <= most)].last().copied(),
            None => {
                let last = self.to.map_or(most, |to| to.min(most)) / self.multiple_of * self.multiple_of;
                Some(last).filter(|&last| last >= self.from)
            }
        }
    }

    /// The value itself where it is allowed, otherwise one of the smallest values that are, chosen by `word`.
    fn fit(&self, value: usize, word: u64) -> usize {
        if self.allows(value) {
            return value;
        }
        let smallest: Vec<usize> = self.values().take(DRAWN).collect();
        smallest[word as usize % smallest.len()]
    }
}

impl TryFrom<Value> for Constraint {
    type Error = Detail;

    fn try_from(json: Value) -> Result<Self, Detail> {
        let wrong = || {
            let expected = format!(
                "a list of numbers, or an object with from, to and multiple_of, all of at least 1, and one that fits up to {LARGEST}"
            );
            Detail::new("constraint", &json, expected)
        };
        let number =
            |value: &Value| value.as_u64().and_then(|value| usize::try_from(value).ok()).ok_or_else(wrong);
        match &json {
            Value::Array(list) => {
                let list = list.iter().map(number).collect::<Result<Vec<_>, _>>()?;
                Self::list(&list).map_err(|_| wrong())
            }
            Value::Object(fields) => {
                let known = |name: &str| ["from", "to", "multiple_of"].contains(&name);
                if fields.is_empty() || !fields.keys().all(|name| known(name)) {
                    return Err(wrong());
                }
                let field = |name: &str| fields.get(name).map(number).transpose();
                let (from, to) = (field("from")?.unwrap_or(1), field("to")?);
                Self::range(from, to, field("multiple_of")?.unwrap_or(1)).map_err(|detail| {
                    let expected = format!("a range that holds at least one such number up to {LARGEST}");
                    Detail::new("constraint", detail.found, expected)
                })
            }
            _ => Err(wrong()),
        }
    }
}

impl From<Constraint> for Value {
    fn from(constraint: Constraint) -> Self {
        match constraint.list {
            Some(list) => serde_json::json!(list),
            None => {
                let mut json = serde_json::Map::new();
                json.insert("from".into(), constraint.from.into());
                if let Some(to) = constraint.to {
                    json.insert("to".into(), to.into());
                }
                if constraint.multiple_of > 1 {
                    json.insert("multiple_of".into(), constraint.multiple_of.into());
                }
                Self::Object(json)
            }
        }
    }
}

impl std::fmt::Display for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", Value::from(self.clone()))
    }
}

/// One constraint for each quantity that is limited.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Domain {
    sizes: BTreeMap<Quantity, Constraint>,
    /// Whether dv must be d.
    value_dim_is_head_dim: bool,
    dtypes: Option<Vec<Storage>>,
}

/// The sizes of a random case, as far as a domain limits them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// b
    pub batch: usize,
    /// hk
    pub kv_heads: usize,
    /// g
    pub group: usize,
    /// m
    pub queries: usize,
    /// n
    pub keys: usize,
    /// r
    pub label_channels: usize,
    /// G
    pub group_factor: usize,
    /// dv
    pub value_dim: usize,
    /// B
    pub label_bits: usize,
}

impl Sizes {
    /// The sizes of scores, which have neither channels nor values.
    pub fn of_heads(batch: usize, heads: usize, queries: usize, keys: usize) -> Self {
        let (kv_heads, group, label_channels, group_factor, value_dim, label_bits) = (heads, 1, 1, 1, 1, 16);
        Self { batch, kv_heads, group, queries, keys, label_channels, group_factor, value_dim, label_bits }
    }
}

impl Domain {
    /// The domain with one more constraint. Errors: the constraint that leaves nothing to ask.
    pub fn with(mut self, quantity: Quantity, constraint: Constraint) -> Result<Self, Detail> {
        self.sizes.insert(quantity, constraint);
        self.check()?;
        Ok(self)
    }

    /// Reads one domain. Errors: unknown names, wrong values, and constraints that leave nothing to ask.
    pub fn from_json(json: &Value) -> Result<Self, Detail> {
        let Value::Object(fields) = json else {
            return Err(Detail::new("domain", json, "an object with one constraint for each quantity"));
        };
        let mut domain = Self::default();
        for (name, value) in fields {
            let field = |detail: Detail| Detail { field: format!("domain.{name}"), ..detail };
            match name.as_str() {
                "dtype" => {
                    let types = serde_json::from_value::<Vec<Storage>>(value.clone()).ok();
                    let types = types.filter(|types| !types.is_empty());
                    let expected = "a list of f32, f16 and bf16, at least one";
                    domain.dtypes = Some(types.ok_or_else(|| field(Detail::new("", value, expected)))?);
                }
                "value_dim" if value == "d" => domain.value_dim_is_head_dim = true,
                _ => {
                    let quantity: Quantity = serde_json::from_value(name.as_str().into()).map_err(|_| {
                        let expected = "batch, heads, kv_heads, group, queries, keys, head_dim, value_dim, \
                                        group_factor, label_channels, heavy_size, label_bits, dtype or page_size";
                        Detail::new("domain", format!("{name:?}"), expected)
                    })?;
                    domain.sizes.insert(quantity, Constraint::try_from(value.clone()).map_err(field)?);
                }
            }
        }
        domain.check()?;
        Ok(domain)
    }

    /// The largest allowed number of keys that is not above another.
    pub(super) fn keys_at_most(&self, most: usize) -> Option<usize> {
        match self.sizes.get(&Quantity::Keys) {
            Some(keys) => keys.at_most(most),
            None => Some(most),
        }
    }

    fn allows(&self, quantity: Quantity, value: usize) -> bool {
        self.sizes.get(&quantity).is_none_or(|constraint| constraint.allows(value))
    }

    fn values(&self, quantity: Quantity, unconstrained: &[usize], most: usize) -> Vec<usize> {
        match self.sizes.get(&quantity) {
            Some(constraint) => constraint.values().take(most).collect(),
            None => unconstrained.to_vec(),
        }
    }

    /// Checks that something is left to ask. Errors: the constraint that leaves nothing.
    fn check(&self) -> Result<(), Detail> {
        let show = |quantity: Quantity| {
            let constraint = self.sizes.get(&quantity).map_or("any".to_owned(), ToString::to_string);
            format!("{} {constraint}", quantity.name())
        };
        let found = |quantities: &[Quantity]| {
            quantities.iter().map(|&quantity| show(quantity)).collect::<Vec<_>>().join(" with ")
        };
        if self.head_choices().is_empty() {
            let quantities = [Quantity::Heads, Quantity::KvHeads, Quantity::Group];
            let expected = "some number of heads that is kv_heads times group";
            return Err(Detail::new("domain.heads", found(&quantities), expected));
        }
        if self.channel_choices().is_empty() {
            let quantities = [Quantity::HeadDim, Quantity::LabelChannels, Quantity::GroupFactor];
            let expected = "some head dimension that is label_channels times group_factor";
            return Err(Detail::new("domain.head_dim", found(&quantities), expected));
        }
        self.check_smallest()?;
        if let Some(bits) = self.sizes.get(&Quantity::LabelBits)
            && !(1..=16).any(|value| bits.allows(value))
        {
            return Err(Detail::new("domain.label_bits", bits, "some number of bits from 1 to 16"));
        }
        if let (Some(queries), Some(keys)) =
            (self.sizes.get(&Quantity::Queries), self.sizes.get(&Quantity::Keys))
        {
            let fewest = queries.values().next().unwrap_or(1);
            if !keys.values().any(|keys| keys >= fewest) {
                let expected = "some number of keys of at least the queries";
                return Err(Detail::new(
                    "domain.keys",
                    found(&[Quantity::Keys, Quantity::Queries]),
                    expected,
                ));
            }
        }
        if self.value_dim_is_head_dim && self.sizes.contains_key(&Quantity::ValueDim) {
            return Err(Detail::new("domain.value_dim", "d and a constraint", "one of the two"));
        }
        Ok(())
    }

    /// Checks that the smallest call can be made. Errors: its sizes.
    fn check_smallest(&self) -> Result<(), Detail> {
        let least = |quantity: Quantity| {
            self.sizes.get(&quantity).and_then(|constraint| constraint.values().next()).unwrap_or(1)
        };
        let product = |(a, b): (usize, usize)| a.saturating_mul(b);
        let heads = self.head_choices().first().copied().map_or(1, product);
        let head_dim = self.channel_choices().first().copied().map_or(1, product);
        let (batch, queries) = (least(Quantity::Batch), least(Quantity::Queries));
        let keys = least(Quantity::Keys).max(queries);
        let width = head_dim.max(least(Quantity::ValueDim)).max(keys);
        let largest = [heads, queries.max(least(Quantity::HeavySize)), width];
        let numbers = largest.into_iter().fold(batch, usize::saturating_mul);
        if numbers <= MOST_NUMBERS {
            return Ok(());
        }
        let found = format!(
            "no call smaller than b = {batch}, h = {heads}, m = {queries}, n = {keys}, d = {head_dim}, H = {}",
            least(Quantity::HeavySize)
        );
        let expected = "some call whose tensors and mask have at most 2^28 numbers";
        Err(Detail::new("domain", found, expected))
    }

    /// (hk, g) that fit, the smallest first.
    fn head_choices(&self) -> Vec<(usize, usize)> {
        let usual = [1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128];
        self.factors(Quantity::Heads, [Quantity::KvHeads, Quantity::Group], &usual)
    }

    /// (r, G) that fit, the smallest head dimension first.
    fn channel_choices(&self) -> Vec<(usize, usize)> {
        let usual = [1, 2, 3, 4, 6, 8, 12, 16, 32, 64];
        self.factors(Quantity::HeadDim, [Quantity::LabelChannels, Quantity::GroupFactor], &usual)
    }

    /// Pairs of two quantities that fit and whose product fits, the smallest product first: of the smallest products, and of the smallest
    /// factors.
    fn factors(&self, product: Quantity, factors: [Quantity; 2], usual: &[usize]) -> Vec<(usize, usize)> {
        let [first, second] = factors.map(|quantity| self.values(quantity, usual, 4 * DRAWN));
        let of_factors = first.iter().flat_map(|&a| second.iter().map(move |&b| (a, b)));
        let products = self.sizes.get(&product).map(|products| products.values().take(4 * DRAWN));
        let divisors = |product: usize| (1..=product).filter(move |&a| product.is_multiple_of(a));
        let of_products = products.into_iter().flatten();
        let of_products = of_products.flat_map(|product| divisors(product).map(move |a| (a, product / a)));
        let fits = |&(a, b): &(usize, usize)| {
            self.allows(factors[0], a)
                && self.allows(factors[1], b)
                && self.allows(product, a.saturating_mul(b))
        };
        let mut pairs: Vec<_> = of_products.chain(of_factors).filter(fits).collect();
        pairs.sort_by_key(|&(a, b)| (a.saturating_mul(b), a));
        pairs.dedup();
        pairs
    }

    /// Sizes inside the domain: the given ones where they are allowed, otherwise small ones that the seed chooses.
    pub fn fit(&self, sizes: Sizes, seed: u64) -> Sizes {
        let word = |index: u64| super::recipe::mix(seed ^ super::recipe::mix(index));
        let fit = |quantity, value, index| match self.sizes.get(&quantity) {
            Some(constraint) => constraint.fit(value, word(index)),
            None => value,
        };
        let Sizes { mut kv_heads, mut group, mut label_channels, mut group_factor, .. } = sizes;
        let choose = |choices: Vec<(usize, usize)>, index: u64| {
            let close = choices.len().min(2 * DRAWN);
            choices[word(index) as usize % close.max(1)]
        };
        let heads_fit = self.allows(Quantity::Heads, kv_heads * group)
            && self.allows(Quantity::KvHeads, kv_heads)
            && self.allows(Quantity::Group, group);
        if !heads_fit {
            (kv_heads, group) = choose(self.head_choices(), 1);
        }
        let channels_fit = self.allows(Quantity::HeadDim, label_channels * group_factor)
            && self.allows(Quantity::LabelChannels, label_channels)
            && self.allows(Quantity::GroupFactor, group_factor);
        if !channels_fit {
            (label_channels, group_factor) = choose(self.channel_choices(), 2);
        }
        let mut keys = fit(Quantity::Keys, sizes.keys, 3);
        let mut queries = fit(Quantity::Queries, sizes.queries, 4);
        if queries > keys {
            let fewest =
                self.sizes.get(&Quantity::Queries).and_then(|queries| queries.values().next()).unwrap_or(1);
            queries = if self.allows(Quantity::Queries, keys) { keys } else { fewest };
            if queries > keys {
                let enough =
                    self.sizes.get(&Quantity::Keys).and_then(|keys| keys.values().find(|&n| n >= queries));
                keys = enough.unwrap_or(queries);
            }
        }
        let value_dim = if self.value_dim_is_head_dim {
            label_channels * group_factor
        } else {
            fit(Quantity::ValueDim, sizes.value_dim, 5)
        };
        let label_bits = match self.sizes.get(&Quantity::LabelBits) {
            Some(bits) if !bits.allows(sizes.label_bits) => {
                let allowed: Vec<usize> = (1..=16).filter(|&value| bits.allows(value)).collect();
                allowed[word(6) as usize % allowed.len().max(1)]
            }
            _ => sizes.label_bits,
        };
        Sizes {
            batch: fit(Quantity::Batch, sizes.batch, 0),
            kv_heads,
            group,
            queries,
            keys,
            label_channels,
            group_factor,
            value_dim,
            label_bits,
        }
    }

    /// A number of keys above `heavy_size`, so that some key is left out; `None` where the domain has none close to it.
    pub fn keys_above(&self, heavy_size: usize, seed: u64) -> Option<usize> {
        let word = super::recipe::mix(seed ^ super::recipe::mix(7)) as usize;
        let wanted = heavy_size + 1 + word % heavy_size.max(1);
        match self.sizes.get(&Quantity::Keys) {
            None => Some(wanted),
            Some(keys) => (wanted..=2 * wanted).find(|&n| keys.allows(n)),
        }
    }

    /// A heavy size inside the domain.
    pub fn fit_heavy_size(&self, size: HeavySize, keys: usize, seed: u64) -> HeavySize {
        match self.sizes.get(&Quantity::HeavySize) {
            Some(constraint)
                if !constraint.allows(heavy_keys(size, keys)) || matches!(size, HeavySize::Fraction(_)) =>
            {
                HeavySize::count(constraint.fit(heavy_keys(size, keys), super::recipe::mix(seed)))
                    .unwrap_or(size)
            }
            _ => size,
        }
    }

    /// The type itself where it is allowed, otherwise one that is, chosen by the seed.
    pub fn fit_dtype(&self, dtype: Storage, seed: u64) -> Storage {
        match &self.dtypes {
            Some(dtypes) if !dtypes.contains(&dtype) => dtypes[seed as usize % dtypes.len()],
            _ => dtype,
        }
    }

    /// The quantities by which a call lies outside, with their values.
    pub fn outside(&self, instance: &Instance, call: &Call) -> Vec<String> {
        self.sizes_outside(&instance.selection, &call.inputs.dims(), call.inputs.storage())
    }

    /// The same as [`Self::outside`], for sizes that are known without the tensors.
    pub fn sizes_outside(&self, selection: &Selection, dims: &Dims, storage: Storage) -> Vec<String> {
        let found = sizes(selection, dims);
        let mut outside: Vec<String> = found
            .into_iter()
            .filter(|&(quantity, value)| !self.allows(quantity, value))
            .map(|(quantity, value)| format!("{} {value}", quantity.name()))
            .collect();
        if self.value_dim_is_head_dim && dims.value_dim != dims.head_dim {
            outside.push(format!("value_dim {} with head_dim {}", dims.value_dim, dims.head_dim));
        }
        if self.dtypes.as_ref().is_some_and(|dtypes| !dtypes.contains(&storage)) {
            outside.push(format!("dtype {storage}"));
        }
        outside
    }

    /// Whether sizes and type lie inside, as far as they are given; dv tied to d only where both are.
    pub fn holds(&self, sizes: &[(Quantity, usize)], storage: Storage) -> bool {
        let size = |wanted: Quantity| sizes.iter().find(|(quantity, _)| *quantity == wanted);
        let tied = match (size(Quantity::HeadDim), size(Quantity::ValueDim)) {
            (Some((_, d)), Some((_, dv))) => !self.value_dim_is_head_dim || d == dv,
            _ => true,
        };
        tied && sizes.iter().all(|&(quantity, value)| self.allows(quantity, value))
            && self.dtypes.as_ref().is_none_or(|dtypes| dtypes.contains(&storage))
    }

    /// Whether a call may have this many queries and keys.
    pub fn allows_lengths(&self, queries: usize, keys: usize) -> bool {
        self.allows(Quantity::Queries, queries) && self.allows(Quantity::Keys, keys)
    }

    /// Whether a batch of this many entries may be asked for.
    pub fn allows_batch(&self, batch: usize) -> bool {
        self.allows(Quantity::Batch, batch)
    }

    /// Whether a call may have so many keys or more.
    pub fn allows_at_least(&self, keys: usize) -> bool {
        self.sizes.get(&Quantity::Keys).is_none_or(|constraint| constraint.values().any(|n| n >= keys))
    }

    /// Whether pages may have this many tokens.
    pub fn allows_page(&self, page_size: usize) -> bool {
        self.allows(Quantity::PageSize, page_size)
    }

    /// The page size itself where it is allowed, otherwise one that is, chosen by the seed.
    pub(super) fn fit_page(&self, page_size: usize, seed: u64) -> usize {
        let fit = |pages: &Constraint| pages.fit(page_size, super::recipe::mix(seed));
        self.sizes.get(&Quantity::PageSize).map_or(page_size, fit)
    }

    /// The number of keys itself where it is allowed, otherwise one that is, chosen by the seed.
    pub(super) fn fit_keys(&self, keys: usize, seed: u64) -> usize {
        let fit = |constraint: &Constraint| constraint.fit(keys, super::recipe::mix(seed));
        self.sizes.get(&Quantity::Keys).map_or(keys, fit)
    }

    /// Whether a head dimension may come with a group factor. One that does not divide it makes a call that must be refused.
    pub fn allows_channels(&self, head_dim: usize, group_factor: usize) -> bool {
        self.allows(Quantity::HeadDim, head_dim)
            && self.allows(Quantity::GroupFactor, group_factor)
            && self.allows(Quantity::LabelChannels, head_dim / group_factor.max(1))
    }
}

/// The value of each quantity in a call, except the page size, which no call has.
pub fn sizes(selection: &Selection, dims: &Dims) -> [(Quantity, usize); 12] {
    let factor = selection.group_factor.get();
    [
        (Quantity::Batch, dims.batch),
        (Quantity::Heads, dims.heads),
        (Quantity::KvHeads, dims.kv_heads),
        (Quantity::Group, dims.group_size()),
        (Quantity::Queries, dims.queries),
        (Quantity::Keys, dims.keys),
        (Quantity::HeadDim, dims.head_dim),
        (Quantity::ValueDim, dims.value_dim),
        (Quantity::GroupFactor, factor),
        (Quantity::LabelChannels, dims.head_dim / factor),
        (Quantity::HeavySize, heavy_keys(selection.heavy_size, dims.keys)),
        (Quantity::LabelBits, usize::from(selection.label_bits.get())),
    ]
}

/// The number that a kernel is given as H: a count as it is, however many keys there are.
fn heavy_keys(size: HeavySize, keys: usize) -> usize {
    match size {
        HeavySize::Count(count) => count.get(),
        HeavySize::Fraction(_) => size.resolve(keys),
    }
}

impl From<&Domain> for Value {
    fn from(domain: &Domain) -> Self {
        let sizes = domain
            .sizes
            .iter()
            .map(|(quantity, constraint)| (quantity.name().to_owned(), Self::from(constraint.clone())));
        let mut json: serde_json::Map<_, _> = sizes.collect();
        if domain.value_dim_is_head_dim {
            json.insert(Quantity::ValueDim.name().into(), "d".into());
        }
        if let Some(dtypes) = &domain.dtypes {
            json.insert("dtype".into(), serde_json::json!(dtypes));
        }
        Self::Object(json)
    }
}

/// Reads a domain, or a list of alternatives. Errors: as those of [`Domain::from_json`]; an empty list.
pub fn domains_from_json(json: &Value) -> Result<Vec<Domain>, Detail> {
    match json {
        Value::Array(alternatives) if alternatives.is_empty() => {
            Err(Detail::new("domain", "an empty list", "at least one domain, or the field left out"))
        }
        Value::Array(alternatives) => alternatives.iter().map(Domain::from_json).collect(),
        one => Ok(vec![Domain::from_json(one)?]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn error_of(domain: Value) -> String {
        domains_from_json(&domain).unwrap_err().to_string()
    }

    #[test]
    fn a_domain_with_nothing_to_ask_names_the_constraint() {
        for (domain, field) in [
            (json!({"head_dim": []}), "domain.head_dim"),
            (json!({"head_dim": [0]}), "domain.head_dim"),
            (json!({"keys": {"from": 10, "to": 5}}), "domain.keys"),
            (json!({"keys": {"from": 1, "to": 15, "multiple_of": 16}}), "domain.keys"),
            (json!({"keys": {"multiple_of": 0}}), "domain.keys"),
            (json!({"keys": {"form": 1}}), "domain.keys"),
            (json!({"keys": "many"}), "domain.keys"),
            (json!({"head_dim": [64], "label_channels": [48]}), "domain.head_dim"),
            (json!({"head_dim": [64], "group_factor": [3]}), "domain.head_dim"),
            (json!({"heads": [6], "kv_heads": [4]}), "domain.heads"),
            (json!({"label_bits": [17]}), "domain.label_bits"),
            (json!({"keys": [4, 8], "queries": [16]}), "domain.keys"),
            (json!({"dtype": []}), "domain.dtype"),
            (json!({"dtype": ["f64"]}), "domain.dtype"),
            (json!({"value_dim": [64], "width": [3]}), "domain"),
            (json!([]), "domain"),
            (json!(3), "domain"),
        ] {
            let error = error_of(domain.clone());
            assert!(
                error.starts_with(&format!("{field}: found")) && error.contains("expected"),
                "{domain}: {error}"
            );
        }
    }

    #[test]
    fn sizes_are_moved_inside_and_stay_where_they_fit() {
        let domain = Domain::from_json(&json!({
            "head_dim": [128], "label_channels": [16], "queries": [1], "value_dim": "d",
            "keys": {"from": 100, "to": 1000, "multiple_of": 4}, "heads": [8, 32], "kv_heads": [8],
        }))
        .unwrap();
        let sizes = Sizes {
            batch: 2,
            kv_heads: 3,
            group: 2,
            queries: 5,
            keys: 40,
            label_channels: 3,
            group_factor: 2,
            value_dim: 7,
            label_bits: 4,
        };
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let found = domain.fit(sizes, seed);
            assert_eq!((found.batch, found.kv_heads, found.queries, found.label_bits), (2, 8, 1, 4));
            assert_eq!((found.label_channels, found.group_factor, found.value_dim), (16, 8, 128));
            assert!(domain.allows(Quantity::Keys, found.keys) && [1, 4].contains(&found.group), "{found:?}");
            seen.insert((found.keys, found.group));
            assert_eq!(domain.fit(found, seed), found);
        }
        assert!(seen.len() >= 8, "{seen:?}");
    }

    #[test]
    fn domains_survive_json() {
        let text = r#"{"keys":{"from":1,"to":9},"head_dim":[64,128],"value_dim":"d","dtype":["f16"]}"#;
        let json: Value = serde_json::from_str(text).unwrap();
        let domain = Domain::from_json(&json).unwrap();
        assert_eq!(Value::from(&domain).to_string(), text);
    }

    #[test]
    fn constraints_survive_json() {
        for text in ["[64,128]", r#"{"from":1,"to":131072}"#, r#"{"from":16,"multiple_of":16}"#] {
            let constraint: Constraint = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&constraint).unwrap(), text);
        }
    }
}
