//! The order of versions.

use std::cmp::Ordering;

/// Compares versions of numbers and words such as `0.5.10` and `0.4.6.post5`; `None` for commits, which have no order.
pub fn compare(one: &str, other: &str) -> Option<Ordering> {
    let (one, other) = (pieces(one)?, pieces(other)?);
    let mut pairs = one.iter().zip(&other).map(|(one, other)| piece(one, other));
    let first = pairs.find(|ordering| ordering.is_ne());
    // 0.5.post1 comes after 0.5, and 0.5.rc1 before it.
    let longer = |rest: &[String]| match rest.first() {
        None => Ordering::Equal,
        Some(next) if next.starts_with(|c: char| c.is_ascii_digit()) || next.starts_with("post") => {
            Ordering::Greater
        }
        Some(_) => Ordering::Less,
    };
    let ends = || match one.len().cmp(&other.len()) {
        Ordering::Greater => longer(&one[other.len()..]),
        _ => longer(&other[one.len()..]).reverse(),
    };
    Some(first.unwrap_or_else(ends))
}

fn piece(one: &str, other: &str) -> Ordering {
    let number = |piece: &str| {
        piece
            .trim_start_matches('0')
            .parse::<u128>()
            .ok()
            .or_else(|| piece.bytes().all(|b| b == b'0').then_some(0))
    };
    match (number(one), number(other)) {
        (Some(one), Some(other)) => one.cmp(&other),
        (Some(_), None) => Ordering::Greater,
        (None, Some(_)) => Ordering::Less,
        // A release after a version comes behind those before it, whatever these are called.
        (None, None) => (one.starts_with("post"), one).cmp(&(other.starts_with("post"), other)),
    }
}

/// Runs of digits and of letters.
fn pieces(version: &str) -> Option<Vec<String>> {
    if !version.contains('.') {
        return None;
    }
    let version = version.strip_prefix('v').unwrap_or(version);
    let mut pieces: Vec<String> = Vec::new();
    let mut last = None;
    for c in version.chars() {
        let kind = if c.is_ascii_digit() {
            0
        } else if c.is_alphanumeric() {
            1
        } else {
            2
        };
        if kind != 2 {
            match pieces.last_mut().filter(|_| last == Some(kind)) {
                Some(piece) => piece.push(c),
                None => pieces.push(c.into()),
            }
        }
        last = Some(kind);
    }
    Some(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_in_order() {
        let ascending =
            ["0.4.6.post5", "0.5", "0.5.2", "0.5.10.rc1", "0.5.10", "0.5.10.post1", "v1.0", "2.11.0+cu130"];
        for (index, one) in ascending.iter().enumerate() {
            assert_eq!(compare(one, one), Some(Ordering::Equal));
            for other in &ascending[index + 1..] {
                assert_eq!(compare(one, other), Some(Ordering::Less), "{one} {other}");
                assert_eq!(compare(other, one), Some(Ordering::Greater), "{other} {one}");
            }
        }
        assert_eq!(compare("b0575e6", "0.5"), None);
    }
}
