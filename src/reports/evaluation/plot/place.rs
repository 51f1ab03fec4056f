//! Where a label can stand without covering anything.

/// Width of a character of a label.
const CHARACTER: f64 = 6.6;
const HEIGHT: f64 = 10.0;
/// Pixels kept free around a label.
const ROOM: f64 = 3.0;
/// A line is avoided at points of it that are this many pixels apart.
const STEP: f64 = 3.0;

/// Left, top, right, bottom, in pixels.
#[derive(Debug, Clone, Copy)]
pub struct Area {
    pub left: f64,
    pub top: f64,
    pub right: f64,
    pub bottom: f64,
}

impl Area {
    /// Whether a point is inside, or within `room` of it.
    pub fn holds(&self, (x, y): (f64, f64), room: f64) -> bool {
        let across = (self.left - room..=self.right + room).contains(&x);
        across && (self.top - room..=self.bottom + room).contains(&y)
    }
}

/// What is drawn already.
#[derive(Debug)]
pub struct Taken {
    panel: Area,
    places: Vec<(f64, f64)>,
}

impl Taken {
    /// Nothing yet.
    pub fn new(panel: Area) -> Self {
        Self { panel, places: Vec::new() }
    }

    /// A line, as far as it is inside the panel.
    pub fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        let steps = ((x2 - x1).hypot(y2 - y1) / STEP).ceil().max(1.0);
        let place = |step: usize| {
            let share = step as f64 / steps;
            (x1 + share * (x2 - x1), y1 + share * (y2 - y1))
        };
        let inside = (0..=steps as usize).map(place).filter(|&place| self.panel.holds(place, STEP));
        self.places.extend(inside);
    }

    /// The four corners and the middle of a marker.
    pub fn marker(&mut self, (x, y): (f64, f64)) {
        self.places.extend(
            [(0.0, 0.0), (-4.0, -4.0), (4.0, -4.0), (-4.0, 4.0), (4.0, 4.0)].map(|(dx, dy)| (x + dx, y + dy)),
        );
    }

    /// Left end and base line of a label beside a marker, where there is room for it; it is taken then.
    pub fn label(&mut self, text: &str, (x, y): (f64, f64)) -> Option<(f64, f64)> {
        let width = CHARACTER * text.chars().count() as f64;
        let lefts = [x + 8.0, x - 8.0 - width, x - width / 2.0];
        let bases = [y - 6.0, y + 6.0 + HEIGHT, y + HEIGHT / 2.0, y - 9.0, y + 9.0 + HEIGHT];
        let candidates = bases.into_iter().flat_map(|base| lefts.map(|left| (left, base)));
        let found = candidates.into_iter().find(|&(left, base)| self.is_free(area(left, base, width)))?;
        let area = area(found.0, found.1, width);
        for base in [area.top, area.bottom] {
            self.line((area.left, base), (area.right, base));
        }
        Some(found)
    }

    fn is_free(&self, area: Area) -> bool {
        let corners = [(area.left, area.top), (area.right, area.bottom)];
        let inside = corners.into_iter().all(|corner| self.panel.holds(corner, 0.0));
        inside && !self.places.iter().any(|&place| area.holds(place, ROOM))
    }
}

fn area(left: f64, base: f64, width: f64) -> Area {
    Area { left, top: base - HEIGHT, right: left + width, bottom: base }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_avoid_lines_markers_and_each_other() {
        let panel = Area { left: 0.0, top: 0.0, right: 200.0, bottom: 100.0 };
        let mut taken = Taken::new(panel);
        taken.line((0.0, 50.0), (200.0, 50.0));
        taken.marker((100.0, 50.0));
        let first = taken.label("H 64", (100.0, 50.0)).expect("room");
        let second = taken.label("H 64", (100.0, 50.0)).expect("room");
        assert_ne!(first, second);
        assert!(first.1 < 50.0);
        assert!(taken.label(&"long".repeat(20), (100.0, 50.0)).is_none());
    }
}
