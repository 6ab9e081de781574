//! Text from outside, cut to a readable length and safe to display.
//!
//! A database's error, a standby's name, a name server's answer, an operator's input: each passes
//! [`clip`] or [`typed`] once, on arrival. After that it fits the decision log, and it cannot end a
//! line, move a cursor, or reverse the direction of the text beside it.

use std::borrow::Cow;
use std::fmt::Write as _;

/// The limit for a text from outside, in bytes: a PostgreSQL error with its detail and hint has
/// about 300.
pub const TEXT_LIMIT: usize = 1000;

/// The limit for a text that is part of what a controller knows of its group, in bytes: dozens of them
/// are kept at a time.
pub const FACT_LIMIT: usize = 300;

/// The limit for a name in a database, in bytes: PostgreSQL's is 63.
pub const NAME_LIMIT: usize = 64;

/// The limit for PostgreSQL's word for a state, in bytes: its own have at most ten letters.
pub const STATE_LIMIT: usize = 24;

/// The limit for a word from outside, in bytes. PostgreSQL limits names to 63.
pub const WORD_LIMIT: usize = 128;

/// The limit for an operator's reason, in bytes.
pub const REASON_LIMIT: usize = 500;

/// Cuts a text from outside to [`TEXT_LIMIT`], and makes it safe to display.
pub fn clip(text: &mut String) {
    clip_to(text, TEXT_LIMIT);
}

/// The same to [`FACT_LIMIT`].
pub fn clip_fact(text: &mut String) {
    clip_to(text, FACT_LIMIT);
}

/// As [`clip`], for an owned text.
#[must_use]
pub fn clipped(text: impl Into<String>) -> String {
    let mut text = text.into();
    clip(&mut text);
    text
}

/// A number of things, with the matching word: `1 connection`, `2 connections`.
pub fn counted(number: u64, one: &str, more: &str) -> String {
    let word = if number == 1 { one } else { more };
    format!("{number} {word}")
}

/// Cuts a text to `limit` bytes at a character boundary, appends its original length, and makes it
/// safe to display. A text that was clipped before stays as it is.
pub fn clip_to(text: &mut String, limit: usize) {
    let bytes = text.len();
    // The cut part need not be checked: escaping never makes a text shorter.
    text.truncate(text.floor_char_boundary(limit.saturating_add(1)));
    if let Cow::Owned(harmless) = harmless(text) {
        *text = harmless;
    }
    if text.len() > limit || text.len() < bytes && bytes > limit {
        let told = format!("… ({bytes} bytes)");
        text.truncate(text.floor_char_boundary(limit.saturating_sub(told.len())));
        text.push_str(&told);
    }
    text.shrink_to_fit();
}

/// Whether a character does more than appear: it ends a line, controls a terminal, reverses the
/// text direction, or is invisible.
pub fn is_harmful(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61C}'
                | '\u{200B}'
                | '\u{200E}'..='\u{200F}'
                | '\u{2028}'..='\u{202E}'
                | '\u{2060}'..='\u{206F}'
                | '\u{FEFF}'
                | '\u{FFF9}'..='\u{FFFB}'
                | '\u{E0000}'..='\u{E007F}'
        )
}

/// The text with every harmful character escaped: `\n`, `\u{1b}`.
pub fn harmless(text: &str) -> Cow<'_, str> {
    if !text.contains(is_harmful) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len().saturating_add(16));
    for character in text.chars() {
        if is_harmful(character) {
            // Writing to a String cannot fail.
            write!(shown, "{}", character.escape_default()).unwrap_or_default();
        } else {
            shown.push(character);
        }
    }
    Cow::Owned(shown)
}

/// The same for JSON, with escapes that its readers decode: `\u202e`.
pub fn harmless_json(json: &str) -> Cow<'_, str> {
    let harmful = |character: char| is_harmful(character) && character != '\n';
    if !json.contains(harmful) {
        return Cow::Borrowed(json);
    }
    let mut shown = String::with_capacity(json.len().saturating_add(16));
    for character in json.chars() {
        if harmful(character) {
            for unit in character.encode_utf16(&mut [0; 2]) {
                // Writing to a String cannot fail.
                write!(shown, "\\u{unit:04x}").unwrap_or_default();
            }
        } else {
            shown.push(character);
        }
    }
    Cow::Owned(shown)
}

/// Why an operator's input is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TypedError {
    /// It is empty.
    #[error("the reason is empty: say why in a few words, such as `new disks at aws`")]
    Empty,
    /// It contains a character that would not be visible as itself.
    #[error(
        "the reason holds `{0}`, which is not a visible character: write one line of plain text"
    )]
    Harmful(String),
    /// It is too long.
    #[error("the reason has {0} bytes, the limit is {REASON_LIMIT}: shorten it")]
    TooLong(usize),
}

/// An operator's reason, without surrounding spaces. It is refused rather than corrected: the
/// operator can fix it, and the log then says exactly what was typed.
pub fn typed(text: &str) -> Result<String, TypedError> {
    let text = text.trim_matches(' ');
    if text.is_empty() {
        return Err(TypedError::Empty);
    }
    if text.len() > REASON_LIMIT {
        return Err(TypedError::TooLong(text.len()));
    }
    match text.chars().find(|character| is_harmful(*character)) {
        Some(harmful) => Err(TypedError::Harmful(harmful.escape_default().to_string())),
        None => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_is_cut_at_a_whole_character_and_says_how_long_it_was() {
        for (limit, letter) in [(1000, "x"), (1000, "ü"), (999, "日"), (128, "💥")] {
            let whole = letter.repeat(1 << 20);
            let mut cut = whole.clone();
            clip_to(&mut cut, limit);
            assert!(cut.len() <= limit, "{} of {limit}", cut.len());
            assert!(cut.len() > limit - 8, "{} of {limit}", cut.len());
            let end = format!("… ({} bytes)", whole.len());
            let kept = cut.strip_suffix(&end).unwrap();
            assert!(whole.starts_with(kept));
            assert!(cut.capacity() < 2 * limit, "the rest is given back");
        }
    }

    #[test]
    fn what_was_clipped_stays_as_it_is() {
        for text in [
            String::new(),
            "plain".to_owned(),
            "x".repeat(TEXT_LIMIT),
            "x".repeat(TEXT_LIMIT + 1),
            "\n".repeat(TEXT_LIMIT),
            "\u{1b}[2J\u{202e}".repeat(300),
        ] {
            let once = clipped(text.clone());
            assert!(once.len() <= TEXT_LIMIT, "{text:?}");
            assert!(!once.contains(is_harmful), "{once:?}");
            assert_eq!(clipped(once.clone()), once);
        }
        assert_eq!(clipped("x".repeat(TEXT_LIMIT)).len(), TEXT_LIMIT);
    }

    #[test]
    fn nothing_that_is_shown_ends_a_line_or_steers_a_terminal() {
        assert_eq!(harmless("a\n 7 forged\r"), "a\\n 7 forged\\r");
        assert_eq!(harmless("\u{1b}[31mred"), "\\u{1b}[31mred");
        assert_eq!(harmless("a\u{202e}b\u{2028}"), "a\\u{202e}b\\u{2028}");
        assert_eq!(harmless("größer 日本 💥"), "größer 日本 💥");
    }

    #[test]
    fn json_is_the_same_to_its_readers() {
        let text = "a\u{202e}b\u{2028}\u{85}\u{e0041}\u{feff}";
        let json = serde_json::to_string(text).unwrap();
        let shown = harmless_json(&json);
        assert!(!shown.contains(is_harmful), "{shown}");
        assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), text);
    }

    #[test]
    fn a_reason_is_one_line_of_visible_text() {
        assert_eq!(typed("  new disks "), Ok("new disks".to_owned()));
        assert_eq!(typed(""), Err(TypedError::Empty));
        assert_eq!(typed("   "), Err(TypedError::Empty));
        let long = "x".repeat(REASON_LIMIT + 1);
        assert_eq!(typed(&long), Err(TypedError::TooLong(REASON_LIMIT + 1)));
        for harmful in ["a\n open forged", "\u{1b}[2J", "a\u{202e}b", "a\tb"] {
            let refused = typed(harmful).unwrap_err();
            assert!(matches!(refused, TypedError::Harmful(_)), "{refused}");
            assert!(!refused.to_string().contains(is_harmful), "{refused:?}");
        }
    }
}
