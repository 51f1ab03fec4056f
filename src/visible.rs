//! Text of others made harmless: names and messages of commands, file names, what a file says of itself. Control characters can
//! rewrite what a terminal shows, and marks of direction can reorder what a reader sees; both are shown as escapes.

use std::borrow::Cow;

/// Whether a character acts on what is around it in place of being shown: controls, marks of direction, separators of lines, and
/// the mark of byte order.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{061c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
        || matches!(c, '\u{e0000}'..='\u{e007f}')
}

fn escaped(text: &str, kept: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(|c| acts(c) && !kept(c)) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if acts(c) && !kept(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    Cow::Owned(shown)
}

/// A text of several lines. Applied twice it changes nothing more.
pub(crate) fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c == '\n')
}

/// What has to stay on one line, such as a name.
pub(crate) fn one_line(text: &str) -> Cow<'_, str> {
    escaped(text, |_| false)
}

/// What a command says, within a report: lines after the first are indented, so that none of them looks like the report's own.
#[cfg(feature = "process")]
pub(crate) fn message(text: &str) -> String {
    lines(text.trim_end()).replace('\n', "\n      ")
}

/// JSON, in which such characters may stand in strings alone: it means the same afterwards.
#[cfg(feature = "cli")]
pub(crate) fn json(text: &str) -> Cow<'_, str> {
    if !text.contains(|c| acts(c) && c != '\n') {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if acts(c) && c != '\n' {
            let mut units = [0; 2];
            c.encode_utf16(&mut units).iter().for_each(|unit| shown.push_str(&format!("\\u{unit:04x}")));
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bell, escape, delete, a control of 8 bits, a change of direction, a mark of byte order.
    const HOSTILE: &str = "a\u{7}\u{1b}[31m\u{7f}\u{9b}2J\u{202e}\u{feff}é\u{e0041}";

    #[test]
    fn what_acts_is_shown() {
        assert_eq!(one_line("é – 日本 🙂"), "é – 日本 🙂");
        assert_eq!(one_line(HOSTILE), r"a\u{7}\u{1b}[31m\u{7f}\u{9b}2J\u{202e}\u{feff}é\u{e0041}");
        assert_eq!(one_line("a\r\nb\tc"), r"a\r\nb\tc");
        assert_eq!(lines("a\r\nb\tc"), "a\\r\nb\\tc");
        assert_eq!(lines(&lines(HOSTILE)), lines(HOSTILE));
        for code in 0..0x11_0000u32 {
            let Some(c) = char::from_u32(code) else { continue };
            let shown = one_line(c.encode_utf8(&mut [0; 4])).into_owned();
            assert!(!shown.contains(char::is_control), "{code:x}");
        }
    }

    #[cfg(feature = "cli")]
    #[test]
    fn json_means_the_same() {
        let text = serde_json::to_string(HOSTILE).unwrap();
        assert!(text.contains('\u{9b}'));
        let shown = json(&text);
        assert!(!shown.contains(acts));
        assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), HOSTILE);
    }
}
