//! Tensors and masks as text of a few lines, however large they are: equal rows once, rows of many numbers by those that are not
//! zero, and of many rows those that matter.

use std::fmt::Write;

use ndarray::{Array4, ArrayView1, s};

use super::rows;
use crate::algorithm::Mask;

/// Rows of more numbers are printed by those that are not zero, and so are all of a tensor of more numbers than
/// `LARGEST_PRINTED`.
const LONGEST: usize = 64;
const LARGEST_PRINTED: usize = 256;

/// Groups of equal rows that are printed, and numbers of a row.
const MOST_LINES: usize = 16;
const MOST_NUMBERS: usize = 12;

/// Tensors of no more rows are printed row by row.
const FEW_ROWS: usize = 16;

/// Masks up to this many rows and keys are drawn; of others, the keys of a few rows are listed.
const LARGEST_DRAWING: (usize, usize) = (64, 128);
const MOST_ROWS: usize = 8;

/// Along which axis a tensor has keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// None.
    Nowhere,
    /// Each row is that of a key.
    Rows,
    /// Each number of a row is that of a key.
    Columns,
}

/// A tensor, one row a line.
pub fn numbers(name: &str, tensor: &Array4<f32>) -> String {
    numbers_of(name, tensor, Keys::Nowhere, &[])
}

/// A tensor, one row a line. Where there are too many, those of the keys that matter.
pub fn numbers_of(name: &str, tensor: &Array4<f32>, keys: Keys, matter: &[usize]) -> String {
    let mut text = format!("  {name} {:?}\n", tensor.shape());
    let groups = groups(tensor);
    let of_rows = keys == Keys::Rows && !matter.is_empty();
    let matters = |group: &&Group| {
        !of_rows
            || groups.len() <= MOST_LINES
            || matter.iter().any(|key| (group.first..=group.last).contains(key))
    };
    let shown: Vec<&Group> = groups.iter().filter(matters).take(MOST_LINES).collect();
    let plain = tensor.len() <= LARGEST_PRINTED || tensor.shape()[3] <= MOST_NUMBERS;
    let columns = if keys == Keys::Columns { matter } else { &[] };
    for Group { at: (b, head), first, last } in &shown {
        let row = tensor.slice(s![*b, *head, *first, ..]);
        let row = if plain && row.len() < LONGEST { all(row) } else { format!("  {}", sparse(row, columns)) };
        let positions = if first == last { first.to_string() } else { format!("{first}–{last}") };
        let _ = writeln!(text, "    {b}/{head}/{positions:<3}{row}");
    }
    let rows = |group: &Group| group.last - group.first + 1;
    let left: usize = groups.iter().map(rows).sum::<usize>() - shown.into_iter().map(rows).sum::<usize>();
    if left > 0 {
        let _ = writeln!(text, "    … and {left} more rows");
    }
    text
}

/// Rows that follow one another and are equal, bit for bit.
struct Group {
    at: (usize, usize),
    first: usize,
    last: usize,
}

fn groups(tensor: &Array4<f32>) -> Vec<Group> {
    let (batch, heads, positions, _) = tensor.dim();
    let few = batch * heads * positions <= FEW_ROWS;
    let mut groups: Vec<Group> = Vec::new();
    for (b, head, position) in ndarray::indices((batch, heads, positions)) {
        let row = |position: usize| tensor.slice(s![b, head, position, ..]);
        let same = |group: &&mut Group| {
            let bits = |(x, y): (&f32, &f32)| x.to_bits() == y.to_bits();
            !few && group.at == (b, head) && row(group.first).iter().zip(row(position)).all(bits)
        };
        match groups.last_mut().filter(same) {
            Some(group) => group.last = position,
            None => groups.push(Group { at: (b, head), first: position, last: position }),
        }
    }
    groups
}

fn all(row: ArrayView1<'_, f32>) -> String {
    row.iter().map(|x| format!("{x:>8}")).collect::<Vec<_>>().join(" ")
}

/// `[column]=x` for each run of equal numbers that are not zero; where there are too many, those of some columns.
fn sparse(row: ArrayView1<'_, f32>, columns: &[usize]) -> String {
    let mut runs: Vec<(usize, usize, f32)> = Vec::new();
    for (column, &x) in row.iter().enumerate() {
        match runs.last_mut() {
            Some((_, last, y)) if *last + 1 == column && y.to_bits() == x.to_bits() => *last = column,
            _ => runs.push((column, column, x)),
        }
    }
    let zero = |x: f32| x.to_bits() == 0;
    let others: Vec<_> = runs.iter().filter(|(_, _, x)| !zero(*x)).collect();
    let holds = |(first, last, _): &(usize, usize, f32)| {
        columns.iter().any(|column| (first..=last).contains(&column))
    };
    let many = others.len() > MOST_NUMBERS && !columns.is_empty();
    let shown: Vec<_> = if many {
        runs.iter().filter(|run| holds(run)).take(MOST_NUMBERS).collect()
    } else {
        others.iter().copied().take(MOST_NUMBERS).collect()
    };
    let texts = shown.iter().map(|(first, last, x)| match first == last {
        true => format!("[{first}]={x}"),
        false => format!("[{first}–{last}]={x}"),
    });
    let mut text = texts.collect::<Vec<_>>().join(" ");
    if others.is_empty() {
        return "all 0".into();
    }
    let shown = shown.iter().filter(|(_, _, x)| !zero(*x)).count();
    if others.len() > shown {
        let _ = write!(text, " … and {} more that are not 0", others.len() - shown);
    }
    text
}

/// How many keys rows attend to, and the mask itself where it is small: `#` attended with weight 1, `+` with another
/// weight, `.` not attended. Of a large one, the attended keys of the first rows.
pub fn mask(mask: &Mask) -> String {
    let (batch, heads, queries, keys) = mask.weights().dim();
    let attended: Vec<usize> = mask
        .weights()
        .lanes(ndarray::Axis(3))
        .into_iter()
        .map(|row| row.iter().filter(|&&weight| weight != 0.0).count())
        .collect();
    let (least, most) = (attended.iter().min().unwrap_or(&0), attended.iter().max().unwrap_or(&0));
    let counts = if least == most { most.to_string() } else { format!("{least} to {most}") };
    let mut text =
        format!("  mask           {batch} × {heads} × {queries} rows of {keys} keys, {counts} attended\n");
    let rows = ndarray::indices((batch, heads, queries)).into_iter();
    if attended.len() > LARGEST_DRAWING.0 || keys > LARGEST_DRAWING.1 {
        for row @ (b, head, i) in rows.take(MOST_ROWS) {
            let of_row: Vec<usize> = mask.row(row).map(|(key, _)| key).collect();
            let _ = writeln!(text, "  {b}/{head}/{i:<3} {}", rows::keys(&of_row));
        }
        if attended.len() > MOST_ROWS {
            let _ = writeln!(text, "  … and {} more rows", attended.len() - MOST_ROWS);
        }
        return text;
    }
    for ((b, head, i), lane) in rows.zip(mask.weights().rows()) {
        let drawing = lane.iter().map(|&weight| match weight {
            0.0 => '.',
            1.0 => '#',
            _ => '+',
        });
        let _ = writeln!(text, "  {b}/{head}/{i:<3} {}", drawing.collect::<String>());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_rows_are_one_line_and_long_rows_name_what_is_not_zero() {
        let few = Array4::from_shape_fn((1, 1, 3, 2), |(.., c)| c as f32);
        assert_eq!(numbers("q", &few).lines().count(), 4);
        let mut equal = Array4::zeros((1, 1, 65, 1));
        equal[[0, 0, 64, 0]] = 1.0;
        let text = numbers("k", &equal);
        assert!(text.contains("0/0/0–63       0\n") && text.contains("0/0/64        1\n"), "{text}");
        let mut wide = Array4::zeros((1, 1, 1, 128));
        (wide[[0, 0, 0, 5]], wide[[0, 0, 0, 6]], wide[[0, 0, 0, 127]]) = (2.0, 2.0, -1.0);
        assert!(numbers("q", &wide).ends_with("0/0/0    [5–6]=2 [127]=-1\n"), "{}", numbers("q", &wide));
        assert!(numbers("q", &Array4::zeros((1, 1, 1, 64))).ends_with("0/0/0    all 0\n"));
    }

    #[test]
    fn of_many_rows_and_numbers_those_of_the_keys_that_matter_are_shown() {
        let many = Array4::from_shape_fn((1, 1, 5000, 128), |(_, _, key, c)| (key + c) as f32);
        let text = numbers_of("k", &many, Keys::Rows, &[7, 4000]);
        assert!(
            text.contains("    0/0/7    [0]=7 [1]=8 ") && text.contains("    0/0/4000  [0]=4000 "),
            "{text}"
        );
        assert!(text.ends_with("… and 4998 more rows\n") && text.lines().count() == 4, "{text}");
        assert!(text.lines().all(|line| line.len() < 400), "{text}");
        let scores = Array4::from_shape_fn((1, 1, 1, 5000), |(.., key)| key as f32);
        let text = numbers_of("scores", &scores, Keys::Columns, &[0, 3, 4999]);
        assert!(
            text.ends_with("0/0/0    [0]=0 [3]=3 [4999]=4999 … and 4997 more that are not 0\n"),
            "{text}"
        );
    }

    #[test]
    fn the_keys_of_a_large_mask_are_listed() {
        let weights =
            Array4::from_shape_fn((1, 1, 1, 300), |(.., key)| f32::from(u8::from(key < 10 || key == 255)));
        let dims = crate::algorithm::Dims {
            batch: 1,
            heads: 1,
            kv_heads: 1,
            queries: 1,
            keys: 300,
            head_dim: 1,
            value_dim: 1,
        };
        let text = mask(&Mask::from_weights(weights, &dims).unwrap());
        assert!(text.contains("11 attended") && text.ends_with("0/0/0   0–9, 255 (11 keys)\n"), "{text}");
    }
}
