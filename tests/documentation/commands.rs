//! `docs/commands.md` and `--help` name the same commands and options, with the same defaults and values.

use std::collections::{BTreeMap, BTreeSet};

use super::{doublecheck, prose, read, text};

/// What help or the page says of each option or argument, by its name.
type Options = BTreeMap<String, String>;

/// The lines of a list of `-h`, continued lines joined to those they continue.
fn entries(help: &str, list: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != list).skip(1);
    let mut entries: Vec<String> = Vec::new();
    for line in lines.take_while(|line| !line.trim().is_empty()) {
        let indent = line.len() - line.trim_start().len();
        match entries.last_mut() {
            Some(last) if indent > 8 => *last += &format!(" {}", line.trim()),
            _ => entries.push(line.trim().to_owned()),
        }
    }
    entries
}

/// Options and arguments of a command, as `-h` lists them.
fn of_help(command: &[&str]) -> Options {
    let output = doublecheck(&[command, &["-h"]].concat());
    assert!(output.status.success(), "{command:?}: {output:?}");
    let help = text(output.stdout);
    let mut options = Options::new();
    for entry in entries(&help, "Options:") {
        let name = entry.split_whitespace().find(|word| word.starts_with("--")).unwrap().to_owned();
        if name != "--help" && name != "--version" {
            options.insert(name, entry);
        }
    }
    for entry in entries(&help, "Arguments:") {
        let name = entry.split(['<', '>', '[', ']']).nth(1).unwrap().to_owned();
        options.insert(name, entry);
    }
    options
}

/// Options of the sections of the page that speak of a command.
fn of_page(command: &str) -> Options {
    let page = prose(&read("docs/commands.md"));
    let mut options = Options::new();
    for section in page.split("\n## ").skip(1) {
        let (heading, body) = section.split_once('\n').unwrap();
        let own = heading == format!("doublecheck {command}");
        let shared = heading.starts_with("Options of ") && heading.contains(&format!("`{command}`"));
        if !own && !shared {
            continue;
        }
        let table = body.lines().skip_while(|line| *line != "| option | meaning |").skip(2);
        for row in table.take_while(|line| line.starts_with('|')) {
            let name = row.split(['`', ' ']).nth(2).unwrap();
            let before = options.insert(name.to_owned(), row.replace('`', ""));
            assert!(before.is_none(), "{command}: {name} twice");
        }
    }
    options
}

/// What stands between `start` and `]` in an entry of `-h`.
fn bracketed<'a>(entry: &'a str, start: &str) -> Option<&'a str> {
    Some(entry.split_once(start)?.1.split(']').next().unwrap())
}

/// Compares page and help of a command; returns how many options there were.
fn compare(command: &str) -> usize {
    let words: Vec<&str> = command.split(' ').collect();
    let (help, page) = (of_help(&words), of_page(command));
    let names = |options: &Options| options.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(&help), names(&page), "{command}: --help on the left, docs/commands.md on the right");
    for (name, entry) in &help {
        let row = &page[name];
        if let Some(default) = bracketed(entry, "[default: ") {
            assert!(row.contains("default") && row.contains(default), "{command} {name}: {default}\n{row}");
        }
        for value in bracketed(entry, "[possible values: ").into_iter().flat_map(|all| all.split(", ")) {
            assert!(row.contains(value), "{command} {name}: {value}\n{row}");
        }
    }
    help.len()
}

/// Names in the first column of the table under a heading.
fn listed(heading: &str, header: &str) -> BTreeSet<String> {
    let page = read("docs/commands.md");
    let (_, rest) = page.split_once(&format!("{heading}\n")).unwrap();
    let table = rest.lines().skip_while(|line| *line != header).skip(2);
    table
        .take_while(|line| line.starts_with('|'))
        .map(|row| row.split('`').nth(1).unwrap().to_owned())
        .collect()
}

fn commands(arguments: &[&str]) -> BTreeSet<String> {
    let help = text(doublecheck(&[arguments, &["-h"]].concat()).stdout);
    entries(&help, "Commands:")
        .iter()
        .map(|entry| entry.split_whitespace().next().unwrap().to_owned())
        .collect()
}

#[test]
fn the_page_lists_every_command_and_option() {
    let all = commands(&[]);
    assert_eq!(all, listed("# Commands", "| command | what it does |"));
    let mut options = 0;
    for command in all.iter().filter(|command| !["help", "eval"].contains(&command.as_str())) {
        options += compare(command);
    }
    assert!(options > 40, "{options} options");
}

#[test]
#[cfg_attr(not(feature = "torch"), ignore = "needs the feature torch")]
fn the_page_lists_every_task_and_option_of_eval() {
    let mut all = commands(&["eval"]);
    all.remove("help");
    assert_eq!(all, listed("## doublecheck eval", "| subcommand | what it does |"));
    let options: usize = all.iter().map(|task| compare(&format!("eval {task}"))).sum();
    assert!(options > 80, "{options} options");
}

#[test]
fn every_option_of_a_command_line_on_a_page_exists() {
    let mut known = BTreeMap::new();
    for command in commands(&[]).into_iter().filter(|command| command != "help" && command != "eval") {
        let options = of_help(&[&command]);
        known.insert(command, options);
    }
    let mut found = 0;
    for page in super::pages() {
        for (language, block, _) in super::blocks(&read(&page)) {
            for line in block.replace("\\\n", " ").lines().filter(|_| language == "sh") {
                let line = line.split(" # ").next().unwrap();
                let line = line.replace("cargo run --release -- ", "doublecheck ");
                let line = line.replace("cargo run --release --features torch -- ", "doublecheck ");
                let Some((_, rest)) = line.split_once("doublecheck ") else { continue };
                let mut words = rest.split(' ');
                let Some(options) = words.next().and_then(|command| known.get(command)) else { continue };
                // What stands in quotes belongs to another command.
                let own: String = rest.split('"').step_by(2).collect();
                for word in own.split_whitespace().filter(|word| word.starts_with("--")) {
                    found += 1;
                    assert!(options.contains_key(word), "{page}: {line}");
                }
            }
        }
    }
    assert!(found > 20, "{found} options");
}
