//! A static site of checks: a matrix of implementations and parts of the contract, a page for each implementation and version with
//! its findings and their counterexamples, and what changed over versions. The pages load nothing from elsewhere and run nothing.

mod load;
mod matrix;
mod page;
mod versions;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use maud::{Markup, html};

pub use self::load::{Check, Counterexample, load};
use self::versions::compare;
use super::parts::{PARTS, Part, Verdict};
use super::record::{Finding, UNKNOWN};
use crate::cases::bundled::SITE;
use crate::runner::check::Implementation;

/// The first page.
pub const INDEX: &str = "index.html";

/// The folder of counterexamples.
pub const COUNTEREXAMPLES: &str = "counterexamples";

/// What marks a page as one that this program wrote and may replace.
pub const MARK: &str = SITE;

/// The most characters of a page's name.
const LONGEST_NAME: usize = 80;

/// A version of an implementation and its checks, in their order.
struct Version<'a> {
    name: String,
    version: Option<String>,
    /// The file of its page.
    file: String,
    checks: Vec<Shown<'a>>,
}

/// A check as it is shown.
struct Shown<'a> {
    check: &'a Check,
    /// The name of the file of each finding's counterexample.
    files: Vec<Option<String>>,
}

/// A finding of a version, by the place of its check and its own place there.
type Place = (usize, usize);

/// What all checks of a version say of a part.
enum Cell {
    Conforms,
    Diverges(Vec<Place>),
    NotOffered,
    NotAsked,
    NotRecorded,
}

/// Every file of the site by its path below the site's folder.
pub fn build(checks: &[Check]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let versions = versions(checks, &mut files);
    files.insert(INDEX.into(), matrix::index(&versions).into_bytes());
    for version in &versions {
        files.insert(version.file.clone(), page::page(version, &versions).into_bytes());
    }
    files
}

/// The versions of each implementation, in the order of names and versions; their counterexamples are added to `files`.
fn versions<'a>(checks: &'a [Check], files: &mut BTreeMap<String, Vec<u8>>) -> Vec<Version<'a>> {
    let mut versions: Vec<Version> = Vec::new();
    for check in checks {
        let Implementation { name, version, .. } = check.record.implementation();
        let shown = Shown {
            check,
            files: check
                .counterexamples
                .iter()
                .map(|one| one.as_ref().map(|one| keep(check, one, files)))
                .collect(),
        };
        match versions.iter_mut().find(|other| other.name == name && other.version == version) {
            Some(other) => other.checks.push(shown),
            None => versions.push(Version { name, version, file: String::new(), checks: vec![shown] }),
        }
    }
    versions.sort_by(|one, other| {
        let names = (one.name.to_lowercase(), &one.name).cmp(&(other.name.to_lowercase(), &other.name));
        names.then_with(|| older(one, other))
    });
    let mut taken = BTreeSet::from([INDEX.to_owned()]);
    for version in &mut versions {
        version.file = free(&format!("{}.html", slug(&version.title())), |name| taken.contains(name));
        taken.insert(version.file.clone());
    }
    versions
}

/// Puts a counterexample among the files; returns its name. Equal ones are one file.
fn keep(check: &Check, example: &Counterexample, files: &mut BTreeMap<String, Vec<u8>>) -> String {
    let path = |name: &str| format!("{COUNTEREXAMPLES}/{name}");
    let of_other = |files: &BTreeMap<String, Vec<u8>>, name: &str| {
        files.get(&path(name)).is_some_and(|bytes| *bytes != example.bytes)
    };
    let mut name = example.name.clone();
    if of_other(files, &name) {
        name = free(&format!("{}-{name}", check.name), |name| of_other(files, name));
    }
    files.insert(path(&name), example.bytes.clone());
    name
}

/// A name that is not taken: with a number before its extension, where it is.
fn free(name: &str, taken: impl Fn(&str) -> bool) -> String {
    let (stem, extension) = name.rsplit_once('.').unwrap_or((name, ""));
    let mut names = (2..).map(|number| format!("{stem}-{number}.{extension}"));
    let first = std::iter::once(name.to_owned());
    first.chain(&mut names).find(|name| !taken(name)).unwrap_or_default()
}

/// Small letters, digits and hyphens.
fn slug(text: &str) -> String {
    let mut slug = String::new();
    for c in text.to_lowercase().chars() {
        match c {
            'a'..='z' | '0'..='9' | '.' => slug.push(c),
            _ if slug.ends_with('-') || slug.is_empty() => {}
            _ => slug.push('-'),
        }
    }
    slug.truncate(LONGEST_NAME);
    let slug = slug.trim_end_matches(['-', '.']).trim_start_matches('.');
    if slug.is_empty() { "implementation".into() } else { slug.into() }
}

/// By version, or by date where versions are commits.
fn older(one: &Version, other: &Version) -> Ordering {
    let date =
        |version: &Version| version.checks.iter().filter_map(|shown| shown.check.record.date.clone()).min();
    match (&one.version, &other.version) {
        (Some(first), Some(second)) => compare(first, second)
            .unwrap_or_else(|| date(one).cmp(&date(other)).then_with(|| first.cmp(second))),
        (first, second) => first.cmp(second),
    }
}

impl Version<'_> {
    /// The name with the version.
    fn title(&self) -> String {
        match &self.version {
            Some(version) => format!("{} {version}", self.name),
            None => self.name.clone(),
        }
    }

    /// What all checks say of a part.
    fn cell(&self, part: &Part) -> Cell {
        let verdicts: Vec<Verdict> =
            self.checks.iter().map(|shown| part.verdict(&shown.check.record)).collect();
        // One that asked sessions alone says nothing of what is asked in calls, unless there is no other.
        let calls = |place: &usize| self.checks[*place].check.record.asks_calls();
        let telling: Vec<&Verdict> = verdicts
            .iter()
            .enumerate()
            .filter(|(place, _)| calls(place))
            .map(|(_, verdict)| verdict)
            .collect();
        let telling = if telling.is_empty() { verdicts.iter().collect() } else { telling };
        let mut found: Vec<Place> = Vec::new();
        for (place, verdict) in verdicts.iter().enumerate() {
            if let Verdict::Diverges(findings) = verdict {
                found.extend(findings.iter().map(|&finding| (place, finding)));
            }
        }
        let conforms = verdicts.iter().any(|verdict| matches!(verdict, Verdict::Conforms(_)));
        match () {
            () if !found.is_empty() => Cell::Diverges(found),
            () if conforms => Cell::Conforms,
            () if telling.contains(&&Verdict::NotAsked) => Cell::NotAsked,
            () if telling.contains(&&Verdict::NotRecorded) => Cell::NotRecorded,
            () => Cell::NotOffered,
        }
    }

    /// All findings, by their place.
    fn findings(&self) -> impl Iterator<Item = (Place, &Finding)> {
        self.checks.iter().enumerate().flat_map(|(place, shown)| {
            let findings = shown.check.record.findings.iter().enumerate();
            findings.map(move |(index, finding)| ((place, index), finding))
        })
    }

    fn finding(&self, (check, finding): Place) -> &Finding {
        &self.checks[check].check.record.findings[finding]
    }

    /// Where a finding stands.
    fn link(&self, place: Place) -> String {
        format!("{}#{}", self.file, self.anchor(place))
    }

    fn anchor(&self, (check, finding): Place) -> String {
        format!("{}-{}", anchor(self.checks[check].check), finding + 1)
    }

    /// How many conform, of how many.
    fn conforming(&self) -> (usize, usize) {
        let counts = self.checks.iter().map(|shown| shown.check.record.conforming());
        counts.fold((0, 0), |(sum, all), (conforming, asked, _)| {
            (sum.saturating_add(conforming), all.saturating_add(asked))
        })
    }
}

/// The anchor of a check on its page.
fn anchor(check: &Check) -> String {
    slug(&check.name)
}

/// How a cell reads: its class, a glyph, and the name of its state.
fn told(cell: &Cell) -> (&'static str, &'static str, &'static str) {
    match cell {
        Cell::Conforms => ("conforms", "✓", "conforms"),
        Cell::Diverges(_) => ("diverges", "✗", "diverges"),
        Cell::NotOffered => ("not-offered", "–", "not offered"),
        Cell::NotAsked => ("not-asked", "·", "not asked"),
        Cell::NotRecorded => ("not-recorded", "?", "not recorded"),
    }
}

/// The causes of findings, each once, with the first that shows it; what is unknown comes last.
fn causes<'v>(version: &'v Version, places: &[Place]) -> Vec<(&'v str, Place)> {
    let mut causes: Vec<(&str, Place)> = Vec::new();
    for &place in places {
        for cause in version.finding(place).causes() {
            if !causes.iter().any(|(other, _)| *other == cause) {
                causes.push((cause, place));
            }
        }
    }
    causes.sort_by_key(|(cause, _)| *cause == UNKNOWN);
    causes
}

/// The cells of a version in a matrix.
fn cells(version: &Version) -> Markup {
    let cell = |part: &Part| {
        let said = version.cell(part);
        let places = if let Cell::Diverges(places) = &said { &places[..] } else { &[] };
        cell(part, &said, version, places, |place| version.link(place))
    };
    html! { @for part in &PARTS { (cell(part)) } }
}

/// One cell: the causes with links to their findings, or the name of its state.
fn cell(
    part: &Part,
    said: &Cell,
    version: &Version,
    places: &[Place],
    link: impl Fn(Place) -> String,
) -> Markup {
    let (class, glyph, name) = told(said);
    let glyph = html! { span.glyph aria-hidden="true" { (glyph) } };
    let causes = causes(version, places);
    html! {
        td class=(class) data-part=(part.name) title=(format!("{}: {name}", part.name)) {
            div {
                @if causes.is_empty() { (glyph) span.state { (name) } }
                @for (index, (cause, place)) in causes.into_iter().enumerate() {
                    @if index > 0 { ", " }
                    span.cause {
                        @if index == 0 { (glyph) }
                        a href=(link(place)) title=(version.finding(place).sentence) { (cause) }
                    }
                }
            }
        }
    }
}

/// The first row of a matrix.
fn parts_header(first: &str) -> Markup {
    html! {
        thead { tr { th scope="col" { (first) } @for part in &PARTS { th scope="col" title=(part.about) { (part.name) } } } }
    }
}
