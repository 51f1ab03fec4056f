//! Generated retrieval tasks: what a selection of keys loses shows at once where one sentence among many must be
//! found. [`passkey`] hides a number in filler of five sentences, repeated, as the test of Mohtashami and Jaggi (arXiv
//! 2305.16300) does; [`key_value`] hides it among others like it. A seed makes the same task on every 64-bit machine.

use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::{Error, Item, Result};
use crate::algorithm::Detail;

/// Enough for a number of five digits, with a space before it, in any tokeniser.
const MOST_TOKENS: usize = 8;

/// Five digits, so that every tokeniser takes as many tokens for each.
const NUMBERS: std::ops::Range<u32> = 10_000..100_000;

/// About five million tokens.
const MOST_SENTENCES: usize = 1_000_000;

const FILLER: [&str; 5] =
    ["The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again."];

/// What a code can belong to: each once.
const NOUNS: &str = "\
    anchor apple apron arch arrow attic axe badge bag ball banner barn barrel basin basket bath beach bead \
    bean bear bee bell belt bench berry bird blanket boat bolt bone book boot bottle bowl box branch bread \
    brick bridge broom brush bucket butter button cabin cake camel candle canoe canyon cap card carpet cart \
    castle cat cave cellar chain chair chalk cheese cherry chest chimney church circle clock cloth cloud \
    coat coin comb compass cork corn cottage cow cradle crane cup curtain deer desk dish ditch dock dog \
    door dove drum duck dust eagle ear egg engine face fan farm feather fence field finger fish flag flame \
    flask flower flute fog forest fork fountain fox frog garden gate glass glove goat goose grape guitar \
    hall hammer harbour harp hat hedge hill hook horn horse house inn island jacket jar kettle kite knife \
    ladder lake lamp leaf lemon library lighthouse lion lock log map market mask meadow mill mirror moon \
    mountain mouse museum nail necklace needle nest net oak oar ocean onion orange orchard oven owl paddle \
    palace paper path peach pear pebble pen pencil pepper piano pillow pine pipe plate plough plum pocket \
    pond pot prison pump quilt rabbit raft rail rain rake ribbon ring river road roof room root rope rose \
    saddle sail salt sand saw scarf school shed sheep shelf shell ship shirt shoe shop shovel smoke snail \
    snow soap spade spoon spring square stable stair star statue stool storm stove street string sword \
    table tail tent thorn tile tool tower toy train tray tree trumpet tunnel valley vase village violin \
    wagon wall watch wheel whistle window wing wolf wool yard";

/// What tells things of one noun apart, where there are more pairs than nouns: each once.
const ADJECTIVES: &str = "\
    ancient blue brass bright broad brown calm clean cold copper crooked dark deep distant dry dusty empty \
    faded flat forgotten golden green grey heavy hidden hollow huge iron large little lonely narrow new old \
    painted pale plain quiet red round rusty sharp silent small smooth tall thin tiny warm white wide wild \
    wooden yellow";

/// A pass key of five digits hidden in `filler_sentences` sentences (about 4.5 words each): `depth` 0 puts it before all of
/// them, 1 behind, 0.5 in the middle, rounded to a whole sentence. The key comes from the seed, after which the task is
/// named: `passkey 3`.
///
/// Errors: [`Error::Setting`] for 0 or more than 1,000,000 sentences, and for a depth outside 0 to 1.
pub fn passkey(seed: u64, filler_sentences: usize, depth: f64) -> Result<Item> {
    if !(1..=MOST_SENTENCES).contains(&filler_sentences) {
        return Err(setting("filler_sentences", filler_sentences, format!("1 to {MOST_SENTENCES}")));
    }
    if !(0.0..=1.0).contains(&depth) {
        return Err(setting("depth", depth, "a number from 0 to 1".to_owned()));
    }
    let key = SmallRng::seed_from_u64(seed).random_range(NUMBERS);
    let hidden = format!("The pass key is {key}. Remember it. {key} is the pass key.");
    let mut sentences: Vec<&str> = FILLER.iter().copied().cycle().take(filler_sentences).collect();
    sentences.insert((depth * filler_sentences as f64).round() as usize, &hidden);
    let instructions = "A pass key is hidden in a long text that does not matter otherwise. Find it and remember it: you will be \
        asked for it.";
    Ok(Item {
        name: format!("passkey {seed}"),
        context: format!("{instructions}\n\n{}", sentences.join(" ")),
        question: "\n\nWhat is the pass key? The pass key is".to_owned(),
        answers: vec![key.to_string()],
        most_tokens: MOST_TOKENS,
    })
}

/// A list of `pairs` things, each with a code of five digits, and the question for the code of one of them. Things and
/// codes are distinct. Things are nouns; where there are more pairs than nouns, all are an adjective and a noun. Things,
/// codes, their order and the one asked for come from the seed, after which the task is named: `key-value 3`.
///
/// Errors: [`Error::Setting`] for 0 pairs, and for more than 14,742, which is all adjectives with all nouns.
pub fn key_value(seed: u64, pairs: usize) -> Result<Item> {
    let most = NOUNS.split_whitespace().count() * ADJECTIVES.split_whitespace().count();
    if !(1..=most).contains(&pairs) {
        return Err(setting("pairs", pairs, format!("1 to {most}")));
    }
    let mut things = things(pairs);
    let mut random = SmallRng::seed_from_u64(seed);
    let (things, _) = things.partial_shuffle(&mut random, pairs);
    let mut codes: Vec<u32> = NUMBERS.collect();
    let (codes, _) = codes.partial_shuffle(&mut random, pairs);
    let asked = random.random_range(0..pairs);
    let line = |(thing, code): (&String, &u32)| format!("\nThe code of the {thing} is {code}.");
    let list: String = things.iter().zip(codes.iter()).map(line).collect();
    let thing = &things[asked];
    Ok(Item {
        name: format!("key-value {seed}"),
        context: format!("Each thing has a code. Remember the codes: you will be asked for one.\n{list}"),
        question: format!("\n\nWhat is the code of the {thing}? The code of the {thing} is"),
        answers: vec![codes[asked].to_string()],
        most_tokens: MOST_TOKENS,
    })
}

/// All nouns, or all pairs of an adjective and a noun where the nouns are fewer than `pairs`.
fn things(pairs: usize) -> Vec<String> {
    let nouns: Vec<String> = NOUNS.split_whitespace().map(str::to_owned).collect();
    if pairs <= nouns.len() {
        return nouns;
    }
    let with_each = |adjective| nouns.iter().map(move |noun| format!("{adjective} {noun}"));
    ADJECTIVES.split_whitespace().flat_map(with_each).collect()
}

/// Whether the first number of a prediction is one of the answers, digit for digit. A point or a comma between digits
/// belongs to the number, so that neither 48,213 nor 48213.5 is 48213; a sign does not.
pub fn right(prediction: &str, answers: &[String]) -> bool {
    first_number(prediction).is_some_and(|number| answers.iter().any(|answer| answer == number))
}

fn first_number(text: &str) -> Option<&str> {
    let text = &text[text.find(|c: char| c.is_ascii_digit())?..];
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let within = |at: &usize| digit(*at) || (matches!(bytes[*at], b'.' | b',') && digit(at + 1));
    Some(&text[..(0..bytes.len()).take_while(within).count()])
}

fn setting(field: &str, found: impl std::fmt::Display, expected: String) -> Error {
    Error::Setting(Detail::new(field, found, expected))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rstest::rstest;

    use super::*;

    #[test]
    fn a_passkey_of_few_sentences() {
        let item = passkey(3, 6, 0.5).unwrap();
        let key = &item.answers[0];
        let (_, text) = item.context.split_once("\n\n").unwrap();
        let expected = format!(
            "The grass is green. The sky is blue. The sun is yellow. The pass key is {key}. Remember it. {key} is the \
             pass key. Here we go. There and back again. The grass is green."
        );
        assert_eq!(text, expected);
        assert_eq!(item.question, "\n\nWhat is the pass key? The pass key is");
        assert_eq!((item.name.as_str(), item.most_tokens), ("passkey 3", 8));
    }

    #[rstest]
    #[case(0.0, 0)]
    #[case(0.24, 0)]
    #[case(0.26, 1)]
    #[case(0.5, 1)]
    #[case(1.0, 2)]
    fn the_depth_says_how_much_is_before_the_key(#[case] depth: f64, #[case] before: usize) {
        let context = passkey(1, 2, depth).unwrap().context;
        let key = context.find("The pass key is").unwrap();
        let earlier = FILLER[..2].iter().filter(|sentence| context.find(*sentence).unwrap() < key).count();
        assert_eq!(earlier, before, "{context}");
    }

    /// If these values change, the generator of random numbers has changed, and with it every published figure.
    #[test]
    fn a_seed_makes_the_same_task_for_ever() {
        assert_eq!(passkey(3, 40, 0.5).unwrap().answers, ["14630"]);
        let item = key_value(3, 20).unwrap();
        assert_eq!(item.answers, ["41897"]);
        assert!(item.question.ends_with("The code of the pine is"), "{}", item.question);
    }

    #[test]
    fn seeds_make_different_tasks() {
        let keys: HashSet<_> = (0..50).map(|seed| passkey(seed, 1, 0.0).unwrap().answers).collect();
        assert!(keys.len() > 45, "{keys:?}");
        let tasks: HashSet<_> = (0..50).map(|seed| key_value(seed, 9).unwrap().context).collect();
        assert_eq!(tasks.len(), 50);
    }

    #[rstest]
    #[case(1)]
    #[case(30)]
    #[case(273)]
    #[case(274)]
    #[case(3000)]
    fn the_answer_is_the_code_of_the_thing_asked_for(#[case] pairs: usize) {
        let item = key_value(8, pairs).unwrap();
        let asked =
            item.question.split_once("What is the code of the ").unwrap().1.split_once('?').unwrap().0;
        let lines: Vec<&str> =
            item.context.lines().filter(|line| line.starts_with("The code of the ")).collect();
        let expected = format!("The code of the {asked} is {}.", item.answers[0]);
        assert_eq!(lines.iter().filter(|line| **line == expected).count(), 1, "{expected}");
        assert!(item.question.ends_with(&format!("The code of the {asked} is")));
        let pairs_found = lines.iter().map(|line| line.rsplit_once(" is ").unwrap());
        let (things, codes): (HashSet<_>, HashSet<_>) = pairs_found.unzip();
        assert_eq!((lines.len(), things.len(), codes.len()), (pairs, pairs, pairs));
        assert_eq!(asked.contains(' '), pairs > 273, "nouns alone, as long as there are enough: {asked}");
    }

    #[test]
    fn every_place_of_the_list_is_asked_for() {
        let places = (0..100).map(|seed| {
            let item = key_value(seed, 4).unwrap();
            item.context.lines().skip(2).position(|line| line.contains(&item.answers[0])).unwrap()
        });
        assert_eq!(places.collect::<HashSet<_>>(), HashSet::from([0, 1, 2, 3]));
    }

    #[test]
    fn words_are_distinct() {
        let words: Vec<&str> = NOUNS.split_whitespace().chain(ADJECTIVES.split_whitespace()).collect();
        assert_eq!(words.iter().collect::<HashSet<_>>().len(), words.len());
        assert_eq!(NOUNS.split_whitespace().count(), 273);
    }

    #[rstest]
    #[case(passkey(1, 0, 0.5), "setting not allowed: filler_sentences: found 0, expected 1 to 1000000")]
    #[case(
        passkey(1, usize::MAX, 0.5),
        "setting not allowed: filler_sentences: found 18446744073709551615, expected 1 to 1000000"
    )]
    #[case(passkey(1, 9, -0.1), "setting not allowed: depth: found -0.1, expected a number from 0 to 1")]
    #[case(passkey(1, 9, 1.5), "setting not allowed: depth: found 1.5, expected a number from 0 to 1")]
    #[case(passkey(1, 9, f64::NAN), "setting not allowed: depth: found NaN, expected a number from 0 to 1")]
    #[case(key_value(1, 0), "setting not allowed: pairs: found 0, expected 1 to 14742")]
    #[case(key_value(1, 14743), "setting not allowed: pairs: found 14743, expected 1 to 14742")]
    fn settings_out_of_range_are_refused(#[case] made: Result<Item>, #[case] expected: &str) {
        assert_eq!(made.unwrap_err().to_string(), expected);
    }

    #[rstest]
    #[case(" 48213.", true)]
    #[case("48213", true)]
    #[case(" the number 48213, and then 7", true)]
    #[case("é–48213é", true)]
    #[case(" 7 or 48213", false)]
    #[case(" 48,213", false)]
    #[case(" 48 213", false)]
    #[case(" 48213,000", false)]
    #[case(" 48213.5", false)]
    #[case(" 482130", false)]
    #[case(" 048213", false)]
    #[case(" no number", false)]
    #[case("", false)]
    fn the_first_number_counts(#[case] prediction: &str, #[case] expected: bool) {
        assert_eq!(right(prediction, &["11111".to_owned(), "48213".to_owned()]), expected);
    }

    #[test]
    fn nothing_is_right_without_answers() {
        assert!(!right(" 48213", &[]));
    }
}
