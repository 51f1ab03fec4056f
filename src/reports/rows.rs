//! Rows of a mask as text: what is selected, expected, missing and too many, as ranges of keys, and where.

use std::fmt::Write;

use crate::algorithm::channels::ranges;
use crate::verdicts::certificate::Class;
use crate::verdicts::rows::{ComparedRow, TILE};

/// Lists of keys have at most this many ranges, and rows this many tiles.
const MOST: usize = 12;

/// Rows of no more keys are drawn, which shows as much.
const FEW_KEYS: usize = 16;

/// Every row in a few lines; nothing where the drawing of the mask says the same.
pub fn render(rows: &[ComparedRow]) -> String {
    rows.iter().filter(|row| row.keys > FEW_KEYS).map(one).collect()
}

fn one(compared: &ComparedRow) -> String {
    let (b, head, i) = compared.row;
    let mut text = format!("  batch {b}, head {head}, query {i}, of {} keys\n", compared.keys);
    let mut line = |name: &str, what: &str| {
        let _ = writeln!(text, "    {name:<10}{what}");
    };
    let (fewest, most) = compared.counts;
    let counts = if fewest == most { most.to_string() } else { format!("{fewest} to {most}") };
    let expected = match (compared.expected.is_empty(), compared.open.is_empty()) {
        (_, true) => keys(&compared.expected),
        (true, false) => format!("{counts} of the open keys {}", keys(&compared.open)),
        (false, false) => {
            format!(
                "{}, and of the open keys {} as many as make {counts}",
                keys(&compared.expected),
                keys(&compared.open)
            )
        }
    };
    line("expected", &expected);
    line("selected", &keys(&compared.found));
    if !compared.conforms() {
        line("missing", &keys(&compared.missing));
        line("extra", &keys(&compared.extra));
    }
    if compared.keys > TILE && !compared.tiles.is_empty() {
        let tiles = compared.tiles.iter().take(MOST).map(|tile| {
            let last = (tile.first + TILE).min(compared.keys) - 1;
            let lost = format!("{}–{last} lost {} of {}", tile.first, tile.missing, tile.expected);
            match tile.extra {
                0 => lost,
                extra => format!("{lost}, has {extra} too many"),
            }
        });
        let tiles: Vec<String> = tiles.collect();
        let more = more(compared.tiles.len(), "tiles");
        line("tiles", &format!("{}{more} (of {TILE} keys)", tiles.join("; ")));
    }
    for near in &compared.near {
        let class = match near.class {
            Class::In => "in",
            Class::Out => "out",
            Class::Open => "open",
            Class::Before => "attended before",
            Class::Excluded => "excluded",
        };
        let wrong = match (near.class, near.found) {
            (Class::In, false) => ", missing",
            (Class::Out | Class::Excluded, true) => ", extra",
            (_, true) => ", selected",
            _ => "",
        };
        let score = format!("{:.9} ± {:.1e}, {class}{wrong}: {}", near.score, near.radius, keys(&near.keys));
        line("score", &score);
    }
    text
}

/// How many of them are not listed.
fn more(count: usize, what: &str) -> String {
    if count > MOST { format!(" … and {} more {what}", count - MOST) } else { String::new() }
}

/// Ranges of ascending keys and how many there are: "0–2, 5 (4 keys)".
pub fn keys(keys: &[usize]) -> String {
    if keys.is_empty() {
        return "none".into();
    }
    let all = ranges(keys.iter().copied());
    let mut listed: Vec<&str> = all.split(", ").collect();
    let count = listed.len();
    listed.truncate(MOST);
    let more = more(count, "ranges");
    let keys_in_words = if keys.len() == 1 { String::new() } else { format!(" ({} keys)", keys.len()) };
    format!("{}{more}{keys_in_words}", listed.join(", "))
}
