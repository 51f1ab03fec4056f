//! Tables as text: columns two spaces apart, without rules, and no space at the end of a line.

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};

/// A table whose first columns are aligned to the left, all others to the right.
pub(super) fn table(header: &[&str], left_columns: usize) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(header);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        let alignment = if index < left_columns { CellAlignment::Left } else { CellAlignment::Right };
        column.set_cell_alignment(alignment);
    }
    table
}

/// Its text.
pub(super) fn finished(table: &Table) -> String {
    table.lines().fold(String::new(), |text, line| text + line.trim_end() + "\n")
}
