//! What a GGUF file says of itself, checked before a reader trusts it: counts, lengths and sizes that its bytes cannot hold. A reader
//! that allocates by them could be made to allocate anything by a file of a few dozen bytes. It follows the format's description
//! (github.com/ggml-org/ggml, docs/gguf.md); little-endian files of version 1 to 3.

use crate::algorithm::Detail;

type Result<T> = std::result::Result<T, Detail>;

/// Arrays may hold arrays up to this depth; models hold none.
const DEEPEST: usize = 4;

/// The most dimensions of a tensor.
const MOST_DIMENSIONS: u64 = 4;

/// Where tensors begin, unless the file says otherwise: at a multiple of this.
const ALIGNMENT: u64 = 32;

/// Checks the header of a file, and that its tensors lie within it.
///
/// Errors: the field, what it says, and what the file can hold.
pub fn check(bytes: &[u8]) -> Result<()> {
    let mut header = Header { bytes, at: 0, version: 0, alignment: ALIGNMENT };
    if bytes.get(..4) != Some(b"GGUF".as_slice()) {
        let found = format!("a file that begins with {:?}", bytes.get(..4).unwrap_or(bytes));
        return Err(Detail::new("file", found, "a GGUF file, which begins with \"GGUF\""));
    }
    header.at = 4;
    header.version = header.u32("version")?;
    if !(1..=3).contains(&header.version) {
        return Err(Detail::new("version", header.version, "1 to 3, little-endian"));
    }
    let tensors = header.size("tensor_count")?;
    let entries = header.size("metadata_kv_count")?;
    // A name, a type and a value; a name, dimensions, a type and an offset.
    header.fits("metadata_kv_count", entries, header.width() + 4 + 1)?;
    header.fits("tensor_count", tensors, header.width() + 4 + 4 + 8)?;
    for index in 0..entries {
        let key = header.text(&format!("key {index} of the metadata"))?;
        let kind = header.u32(&key)?;
        header.value(&key, kind, 0)?;
    }
    let mut ends = Vec::new();
    for index in 0..tensors {
        ends.push(header.tensor(index)?);
    }
    let data = (header.at as u64).next_multiple_of(header.alignment);
    for (name, end) in ends {
        let end = end.and_then(|end| data.checked_add(end));
        if end.is_none_or(|end| end > bytes.len() as u64) {
            let expected = format!("an end within the file of {} bytes", bytes.len());
            return Err(Detail::new(name, "a tensor that ends after it", expected));
        }
    }
    Ok(())
}

struct Header<'a> {
    bytes: &'a [u8],
    at: usize,
    version: u32,
    alignment: u64,
}

impl Header<'_> {
    /// The bytes of a count or a length.
    fn width(&self) -> u64 {
        if self.version == 1 { 4 } else { 8 }
    }

    fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    /// Errors: a count of things that take so many bytes each at least is more than the rest of the file holds.
    fn fits(&self, field: &str, count: u64, each: u64) -> Result<()> {
        let most = self.left() / each;
        if count <= most {
            return Ok(());
        }
        Err(Detail::new(field, count, format!("at most {most}, as {} bytes are left", self.left())))
    }

    fn skip(&mut self, field: &str, count: u64, each: u64) -> Result<&[u8]> {
        self.fits(field, count, each)?;
        let start = self.at;
        self.at += (count * each) as usize;
        Ok(&self.bytes[start..self.at])
    }

    fn number<const N: usize>(&mut self, field: &str) -> Result<[u8; N]> {
        let mut number = [0; N];
        number.copy_from_slice(self.skip(field, 1, N as u64)?);
        Ok(number)
    }

    fn u32(&mut self, field: &str) -> Result<u32> {
        self.number(field).map(u32::from_le_bytes)
    }

    fn u64(&mut self, field: &str) -> Result<u64> {
        self.number(field).map(u64::from_le_bytes)
    }

    /// A count or a length.
    fn size(&mut self, field: &str) -> Result<u64> {
        if self.version == 1 { self.u32(field).map(u64::from) } else { self.u64(field) }
    }

    fn text(&mut self, field: &str) -> Result<String> {
        let length = self.size(field)?;
        Ok(String::from_utf8_lossy(self.skip(field, length, 1)?).into_owned())
    }

    fn value(&mut self, key: &str, kind: u32, depth: usize) -> Result<()> {
        if key == "general.alignment" && kind != 4 {
            return Err(Detail::new(
                key,
                format!("a value of type {kind}"),
                "type 4, a whole number of 32 bits",
            ));
        }
        match kind {
            0 | 1 | 7 => self.skip(key, 1, 1).map(|_| ()),
            2 | 3 => self.skip(key, 1, 2).map(|_| ()),
            4..=6 => {
                let number = self.u32(key)?;
                if key == "general.alignment" {
                    if !number.is_power_of_two() {
                        return Err(Detail::new(key, number, "a power of two"));
                    }
                    self.alignment = u64::from(number);
                }
                Ok(())
            }
            8 => self.text(key).map(|_| ()),
            9 => self.array(key, depth),
            10..=12 => self.skip(key, 1, 8).map(|_| ()),
            other => Err(Detail::new(key, format!("a value of type {other}"), "a type from 0 to 12")),
        }
    }

    fn array(&mut self, key: &str, depth: usize) -> Result<()> {
        if depth == DEEPEST {
            return Err(Detail::new(key, "arrays within arrays", format!("a depth of at most {DEEPEST}")));
        }
        let kind = self.u32(key)?;
        let length = self.size(key)?;
        let each = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 => self.width(),
            9 => 4 + self.width(),
            _ => 8,
        };
        if kind != 8 && kind != 9 {
            if kind > 12 {
                return Err(Detail::new(key, format!("values of type {kind}"), "a type from 0 to 12"));
            }
            return self.skip(key, length, each).map(|_| ());
        }
        self.fits(key, length, each)?;
        for _ in 0..length {
            self.value(key, kind, depth + 1)?;
        }
        Ok(())
    }

    /// The name of a tensor and where it ends, counted from where tensors begin; `None` where that is beyond all numbers.
    fn tensor(&mut self, index: u64) -> Result<(String, Option<u64>)> {
        let name = self.text(&format!("name of tensor {index}"))?;
        let dimensions = self.u32(&name)?;
        if u64::from(dimensions) > MOST_DIMENSIONS {
            let found = format!("{dimensions} dimensions");
            return Err(Detail::new(name, found, format!("at most {MOST_DIMENSIONS}")));
        }
        let mut elements = Some(1u64);
        for _ in 0..dimensions {
            let size = self.size(&name)?;
            elements = elements.and_then(|elements| elements.checked_mul(size));
        }
        let kind = self.u32(&name)?;
        let offset = self.u64(&name)?;
        // Elements of a block, and its bytes. Of types that are not listed the reader says that it does not know them.
        let (block, bytes) = match kind {
            0 => (1, 4),
            1 | 30 => (1, 2),
            2 => (32, 18),
            3 => (32, 20),
            6 => (32, 22),
            7 => (32, 24),
            8 => (32, 34),
            9 => (32, 36),
            10 => (256, 84),
            11 => (256, 110),
            12 => (256, 144),
            13 => (256, 176),
            14 => (256, 210),
            15 => (256, 292),
            _ => (u64::MAX, 0),
        };
        let Some(elements) = elements else {
            return Err(Detail::new(name, "more numbers than 2^64", "as many as the file holds"));
        };
        let size = (elements / block).checked_mul(bytes);
        Ok((name, size.and_then(|size| size.checked_add(offset))))
    }
}
