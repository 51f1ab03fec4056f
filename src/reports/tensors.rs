//! Tensors and masks as text, where they are small enough to print.

use std::fmt::Write;

use ndarray::Array4;

use crate::algorithm::Mask;

/// Tensors up to this many numbers are printed.
const LARGEST_PRINTED: usize = 256;

/// Masks up to this many rows and keys are drawn.
const LARGEST_DRAWING: (usize, usize) = (64, 128);

/// A tensor, one row a line, or its shape where it is large.
pub fn numbers(name: &str, tensor: &Array4<f32>) -> String {
    let mut text = format!("  {name} {:?}\n", tensor.shape());
    if tensor.len() > LARGEST_PRINTED {
        return text;
    }
    for ((b, head, position), row) in
        ndarray::indices([tensor.shape()[0], tensor.shape()[1], tensor.shape()[2]])
            .into_iter()
            .map(|at| (at, tensor.slice(ndarray::s![at.0, at.1, at.2, ..])))
    {
        let row: Vec<String> = row.iter().map(|x| format!("{x:>8}")).collect();
        let _ = writeln!(text, "    {b}/{head}/{position:<3}{}", row.join(" "));
    }
    text
}

/// How many keys rows attend to, and the mask itself where it is small: `#` attended with weight 1, `+` with another
/// weight, `.` not attended.
pub fn mask(mask: &Mask) -> String {
    let (batch, heads, queries, keys) = mask.weights().dim();
    let attended: Vec<usize> = mask
        .weights()
        .lanes(ndarray::Axis(3))
        .into_iter()
        .map(|row| row.iter().filter(|&&weight| weight != 0.0).count())
        .collect();
    let (least, most) = (attended.iter().min().unwrap_or(&0), attended.iter().max().unwrap_or(&0));
    let mut text = format!(
        "  mask           {batch} × {heads} × {queries} rows of {keys} keys, {least} to {most} attended\n"
    );
    if attended.len() > LARGEST_DRAWING.0 || keys > LARGEST_DRAWING.1 {
        return text;
    }
    for ((b, head, i), lane) in
        ndarray::indices((batch, heads, queries)).into_iter().zip(mask.weights().rows())
    {
        let drawing = lane.iter().map(|&weight| match weight {
            0.0 => '.',
            1.0 => '#',
            _ => '+',
        });
        let _ = writeln!(text, "  {b}/{head}/{i:<3} {}", drawing.collect::<String>());
    }
    text
}
