//! What every page and every drawing must keep to.

const VOID: [&str; 4] = ["meta", "br", "hr", "link"];

/// Name and whole text of each tag.
fn tags(markup: &str) -> Vec<(String, &str)> {
    let tags = markup.split('<').skip(1);
    tags.map(|tag| {
        let (tag, _) = tag.split_once('>').expect("each tag is closed");
        let name = tag.split([' ', '\n']).next().unwrap_or_default();
        (name.to_owned(), tag)
    })
    .collect()
}

/// A page before its style sheet, the style sheet, and the rest.
fn parts(page: &str) -> [&str; 3] {
    let (head, rest) = page.split_once("<style>").expect("a style sheet");
    let (style, rest) = rest.split_once("</style>").expect("its end");
    [head, style, rest]
}

/// Every tag is closed in turn.
pub fn assert_balanced(markup: &str) {
    let mut open = Vec::new();
    for (name, tag) in tags(markup) {
        match name.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop().as_deref(), Some(name), "<{tag}> closes another tag"),
            None if name == "!DOCTYPE" || VOID.contains(&name.as_str()) => {}
            None => open.push(name),
        }
    }
    assert!(open.is_empty(), "never closed: {open:?}");
}

/// Every tag of a page is closed in turn, the style sheet left out.
pub fn assert_page_is_balanced(page: &str) {
    let [head, _, rest] = parts(page);
    assert_balanced(&format!("{head}{rest}"));
}

/// No attribute is given twice, none loads or runs anything, and links stay on the page.
pub fn assert_self_contained(page: &str) {
    let [head, style, rest] = parts(page);
    for (name, tag) in [head, rest].into_iter().flat_map(tags) {
        let twice = |attribute: &str| tag.matches(&format!(" {attribute}=\"")).count() > 1;
        assert!(!["class", "id", "style", "title"].into_iter().any(twice), "an attribute twice: {tag}");
        assert!(!["script", "link", "img", "iframe", "object"].contains(&name.as_str()), "{tag}");
        assert!(!tag.contains(" src=") && !tag.contains(" on"), "{tag}");
        if let Some((_, link)) = tag.split_once(" href=\"") {
            assert!(link.starts_with('#'), "{tag}");
        }
    }
    assert!(!style.contains("url(") && !style.contains("@import"));
    assert!(!page.contains("http://") && !page.contains("https://"));
}

/// All of these are there.
#[track_caller]
pub fn assert_holds(page: &str, parts: &[&str]) {
    for part in parts {
        assert!(page.contains(part), "no {part} in:\n{page}");
    }
}
