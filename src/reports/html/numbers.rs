//! Numbers as short as they can be without losing a bit, and shorter ones for axes.

/// The shortest text that tells an f32 from all others.
pub fn exact(x: f32) -> String {
    if x.is_infinite() {
        return if x > 0.0 { "∞" } else { "-∞" }.into();
    }
    let plain = x == 0.0 || x.is_nan() || (1e-4..1e7).contains(&x.abs());
    if plain { x.to_string() } else { format!("{x:e}") }
}

/// Nine decimals, in scientific notation where plain ones would say too little.
pub fn precise(x: f64) -> String {
    if x.is_infinite() {
        return if x > 0.0 { "∞" } else { "-∞" }.into();
    }
    let plain = x == 0.0 || x.is_nan() || (1e-3..1e6).contains(&x.abs());
    if plain { format!("{x:.9}") } else { format!("{x:.9e}") }
}

/// A bound or a radius: its size is what counts.
pub fn radius(x: f64) -> String {
    if x.is_infinite() {
        "∞".into()
    } else if x == 0.0 {
        "0".into()
    } else {
        format!("{x:.1e}")
    }
}

/// Four digits, for labels in a drawing.
pub fn brief(x: f64) -> String {
    let plain = x == 0.0 || (1e-3..1e5).contains(&x.abs());
    if !plain {
        return format!("{x:.2e}");
    }
    let text = format!("{x:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Round numbers that cover a finite range, each with its text: up to six where the texts are short, else three.
pub fn ticks(low: f64, high: f64) -> Vec<(f64, String)> {
    let largest = low.abs().max(high.abs());
    let short = largest < 1e3 && high - low > 0.05;
    let rough = (high - low) / if short { 6.0 } else { 3.0 };
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|&step| step >= rough);
    let Some(step) = step.filter(|step| step.is_finite() && *step > 0.0) else {
        return Vec::new();
    };
    let decimals = (-step.log10().floor()).max(0.0) as usize;
    let text = |x: f64| match x {
        0.0 => "0".into(),
        x if largest >= 1e5 || decimals > 5 => format!("{x:.1e}"),
        x => format!("{x:.decimals$}"),
    };
    let first = (low / step).ceil();
    let position = |index: usize| (first + index as f64) * step;
    (0..8).map(position).take_while(|&x| x <= high).map(|x| (x, text(x))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_exact() {
        assert_eq!(exact(-0.0), "-0");
        assert_eq!(exact(f32::NEG_INFINITY), "-∞");
        assert_eq!(exact(f32::NAN), "NaN");
        assert_eq!(exact(f32::MAX), "3.4028235e38");
        assert_eq!(exact(0.1), "0.1");
    }

    #[test]
    fn ticks_lie_in_their_range() {
        let texts = |low, high| ticks(low, high).into_iter().map(|(_, text)| text).collect::<Vec<_>>();
        assert_eq!(texts(-0.1, 1.5), ["0", "0.5", "1.0", "1.5"]);
        assert_eq!(texts(-3.0, 9.0), ["-2", "0", "2", "4", "6", "8"]);
        assert_eq!(texts(0.65, 1.47), ["0.8", "1.0", "1.2", "1.4"]);
        assert!(ticks(-3.4e38, 3.4e38).iter().all(|(x, _)| x.abs() <= 3.4e38));
        assert!(ticks(1.0, 1.0).is_empty());
    }
}
