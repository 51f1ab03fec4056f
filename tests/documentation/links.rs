//! Relative links and their anchors, and the paths that pages name.

use std::path::Path;

use super::{pages, path, prose, read};

/// A page without inline code.
fn without_code(text: &str) -> String {
    text.split('`').step_by(2).collect()
}

/// The targets of links and pictures.
fn targets(page: &str) -> Vec<String> {
    let text = without_code(&prose(page));
    let ends = [("](", ')'), ("src=\"", '"')];
    let found = ends.iter().flat_map(|&(start, end)| {
        text.split(start).skip(1).map(move |rest| rest.split(end).next().unwrap().to_owned())
    });
    found.collect()
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(page: &str) -> Vec<String> {
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    let anchor = |heading: &str| -> String {
        heading.trim().to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")
    };
    prose(page)
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| anchor(line.trim_start_matches('#')))
        .collect()
}

#[test]
fn every_relative_link_leads_somewhere() {
    let (mut files, mut sections, mut broken) = (0, 0, Vec::new());
    for page in pages() {
        for target in targets(&read(&page)) {
            if target.contains("://") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let linked = match file {
                "" => page.clone(),
                file => Path::new(&page).parent().unwrap().join(file).to_string_lossy().into_owned(),
            };
            files += 1;
            if !path(&linked).exists() {
                broken.push(format!("{page}: {target}"));
            } else if !anchor.is_empty() {
                sections += 1;
                if !anchors(&read(&linked)).contains(&anchor.to_owned()) {
                    broken.push(format!("{page}: {target}"));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(files > 60 && sections > 15, "{files} links, {sections} to sections");
}

/// Sources move more often than pages are read, and have their own test; the other folders are named here.
#[test]
fn every_path_that_a_page_names_exists() {
    let folders = ["tests/", "golden/", "docs/", "ci/", "examples/", "python/", "benches/"];
    let (mut found, mut missing) = (0, Vec::new());
    for page in pages() {
        let text = prose(&read(&page));
        for code in text.split('`').skip(1).step_by(2) {
            let is_path = folders.iter().any(|folder| code.starts_with(folder));
            if is_path && !code.contains([' ', '*', '…', '\n']) {
                found += 1;
                if !path(code).exists() {
                    missing.push(format!("{page}: {code}"));
                }
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(found > 50, "{found} paths");
}
