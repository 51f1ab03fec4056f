//! The first page: a matrix of versions and parts of the contract, the cause of each divergence, and what changed over versions.

use maud::{Markup, html};

use super::{Cell, Version, causes, cells, parts_header, told};
use crate::reports::html::{Status, counted, facts, page, scroll};
use crate::reports::parts::PARTS;

/// The whole page.
pub fn index(versions: &[Version]) -> String {
    let implementations = by_name(versions);
    let checks: usize = versions.iter().map(|version| version.checks.len()).sum();
    let text = format!(
        "{} in {}, {}",
        counted(implementations.len(), "implementation", "implementations"),
        counted(versions.len(), "version", "versions"),
        counted(checks, "check", "checks")
    );
    let status = Status { class: "neutral", glyph: "", text };
    let body = html! {
        (matrix(versions))
        (self::causes_of(versions))
        (trend(&implementations))
        (parts())
    };
    page("site", "What implementations do", env!("CARGO_PKG_VERSION"), &status, &body)
}

/// The versions of each implementation.
fn by_name<'v, 'a>(versions: &'v [Version<'a>]) -> Vec<&'v [Version<'a>]> {
    versions.chunk_by(|one, other| one.name == other.name).collect()
}

fn matrix(versions: &[Version]) -> Markup {
    let rows = html! {
        table.matrix {
            (parts_header("Implementation"))
            tbody {
                @for version in versions {
                    tr {
                        th scope="row" {
                            a href=(version.file) { (version.name) }
                            span.aside { (version.version.as_deref().unwrap_or("version not recorded")) }
                        }
                        (cells(version))
                    }
                }
            }
        }
    };
    html! {
        section #matrix {
            h2 { "Implementations and parts of the contract" }
            p.aside {
                "A part conforms where it was judged and no finding concerns it; what was never asked is no statement. "
                "A divergence names its cause, and leads to the finding."
            }
            (scroll(&rows))
            (legend())
        }
    }
}

fn legend() -> Markup {
    let states = [
        (Cell::Conforms, "judged, no finding"),
        (
            Cell::Diverges(Vec::new()),
            "with its cause: a row of SPEC §3 or the name of a bug; a relation, rounding; unknown",
        ),
        (Cell::NotOffered, "the implementation does not do it"),
        (Cell::NotAsked, "in these checks"),
        (Cell::NotRecorded, "by the program of that time"),
    ];
    html! {
        ul.legend.states {
            @for (cell, meaning) in &states {
                @let (class, glyph, name) = told(cell);
                li class=(class) { span { span.glyph aria-hidden="true" { (glyph) } strong { (name) } ": " (meaning) } }
            }
        }
    }
}

/// Each cause of a divergence in a sentence.
fn causes_of(versions: &[Version]) -> Markup {
    let mut diverging = versions.iter().filter(|version| version.findings().next().is_some()).peekable();
    html! {
        @if diverging.peek().is_some() {
            section #causes {
                h2 { "Causes" }
                @for version in diverging {
                    h3 { a href=(version.file) { (version.title()) } }
                    ul.causes {
                        @let places: Vec<_> = version.findings().map(|(place, _)| place).collect();
                        @for (sentence, place) in sentences(version, &places) {
                            li {
                                a href=(version.link(place)) { (version.finding(place).kind) } ": " (sentence)
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Every sentence once, with the first finding that says it.
fn sentences(version: &Version, places: &[super::Place]) -> Vec<(String, super::Place)> {
    let mut found: Vec<(String, super::Place)> = Vec::new();
    for &place in places {
        let finding = version.finding(place);
        let same = |(sentence, other): &(String, super::Place)| {
            *sentence == finding.sentence && version.finding(*other).kind == finding.kind
        };
        if !found.iter().any(same) {
            found.push((finding.sentence.clone(), place));
        }
    }
    found
}

/// What each version of an implementation did, the oldest first.
fn trend(implementations: &[&[Version]]) -> Markup {
    let (several, single): (Vec<&[Version]>, Vec<&[Version]>) =
        implementations.iter().partition(|versions| versions.len() > 1);
    html! {
        section #versions {
            h2 { "Over versions" }
            @for versions in &several {
                h3 { (versions[0].name) }
                (scroll(&rows(versions)))
            }
            @if !single.is_empty() {
                p.aside {
                    @if several.is_empty() { "Of each implementation one version was checked." }
                    @else { "Of the other implementations one version was checked." }
                }
            }
        }
    }
}

fn rows(versions: &[Version]) -> Markup {
    html! {
        table.trend {
            thead { tr { @for name in ["Version", "Asked", "Conform", "Findings", "Causes"] { th scope="col" { (name) } } } }
            tbody {
                @for version in versions {
                    @let (conforming, asked) = version.conforming();
                    @let places: Vec<_> = version.findings().map(|(place, _)| place).collect();
                    tr {
                        th scope="row" { a href=(version.file) { (version.version.as_deref().unwrap_or("not recorded")) } }
                        td { (version.dates().unwrap_or("date not recorded".into())) ", " (counted(version.checks.len(), "check", "checks")) }
                        td.share { (share(conforming, asked, "")) }
                        td { (places.len()) }
                        td { (causes(version, &places).into_iter().map(|(cause, _)| cause).collect::<Vec<_>>().join(", ")) }
                    }
                }
            }
        }
    }
}

/// How many conform, as numbers and as a bar.
pub fn share(conforming: usize, asked: usize, of: &str) -> Markup {
    let percent = 100.0 * conforming as f64 / asked.max(1) as f64;
    html! {
        span { (conforming) " of " (asked) (of) }
        div.shares aria-hidden="true" {
            @if conforming > 0 { span.conforming style=(format!("width: {percent:.2}%")) {} }
            @if conforming < asked { span.diverged style=(format!("width: {:.2}%", 100.0 - percent)) {} }
        }
    }
}

/// What the columns are.
fn parts() -> Markup {
    let lines: Vec<(&str, Markup)> = PARTS.iter().map(|part| (part.name, html! { (part.about) })).collect();
    html! {
        section #parts {
            h2 { "The parts" }
            (facts(&lines))
        }
    }
}
