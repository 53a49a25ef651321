//! What people write, made safe to show.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    sync::LazyLock,
};

use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use super::MAX_MESSAGE_CHARS;
use crate::refusal::Refusal;

/// The contract's tags and attributes, and nothing that can run.
static CLEANER: LazyLock<ammonia::Builder<'static>> = LazyLock::new(|| {
    let mut cleaner = ammonia::Builder::empty();
    cleaner
        .tags(HashSet::from(["b", "i", "em", "strong", "a", "br", "p"]))
        .tag_attributes(HashMap::from([("a", HashSet::from(["href", "target"]))]))
        .clean_content_tags(HashSet::from(["script", "style"]))
        .url_schemes(HashSet::from(["http", "https"]))
        .link_rel(None);
    cleaner
});

/// What means something in HTML, or is written in another way.
const MARKUP: [char; 6] = ['<', '>', '&', '\0', '\r', '\u{a0}'];

/// NFC, harmless HTML, without surrounding white space. Nothing left counts as missing.
pub fn sanitise(message: &str) -> Result<String, Refusal> {
    let message: Cow<'_, str> = match is_nfc_quick(message.chars()) {
        IsNormalized::Yes => message.into(),
        IsNormalized::No | IsNormalized::Maybe => message.nfc().collect(),
    };
    if message.chars().count() > MAX_MESSAGE_CHARS {
        let limit = format!("message: at most {MAX_MESSAGE_CHARS} characters");
        return Err(Refusal::TooLarge(limit.into()));
    }
    // Most messages hold nothing that a cleaner could change.
    let clean =
        if message.contains(MARKUP) { CLEANER.clean(&message).to_string().into() } else { message };
    let clean = clean.trim();
    // None of the tags shows anything by itself; a space that may not break is one.
    let shows_nothing = if clean.contains('<') {
        is_blank(&STRIPPER.clean(clean).to_string().replace("&nbsp;", " "))
    } else {
        is_blank(clean)
    };
    if shows_nothing {
        return Err(Refusal::Required("message: nothing to show".into()));
    }
    Ok(clean.to_owned())
}

/// Whether there is nothing but white space, and characters without width.
fn is_blank(text: &str) -> bool {
    let is_invisible =
        |one| matches!(one, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}');
    text.chars().all(|one| one.is_whitespace() || is_invisible(one))
}

/// Takes all markup out.
static STRIPPER: LazyLock<ammonia::Builder<'static>> = LazyLock::new(|| {
    let mut stripper = ammonia::Builder::empty();
    stripper.clean_content_tags(HashSet::from(["script", "style"]));
    stripper
});

/// A required text without markup, as it is meant to be read: no entities, nothing a browser would
/// take for a tag. Nothing left counts as missing.
pub fn plain(field: &'static str, text: &str, max_chars: usize) -> Result<String, Refusal> {
    /// Markup under so many layers of escaping is no accident.
    const LAYERS: usize = 8;
    let mut text: String = text.nfc().collect();
    if text.chars().count() > max_chars {
        return Err(Refusal::Invalid(format!("{field}: at most {max_chars} characters").into()));
    }
    for _ in 0..LAYERS {
        let escaped = STRIPPER.clean(&text).to_string();
        let clean = escaped
            .replace("&lt;", "<")
            .replace("&gt;", ">")
            .replace("&nbsp;", "\u{a0}")
            .replace("&amp;", "&")
            .replace('\0', "");
        if clean == text {
            let text = text.trim();
            return if text.is_empty() {
                Err(Refusal::Required(format!("{field}: nothing to show").into()))
            } else {
                Ok(text.to_owned())
            };
        }
        text = clean;
    }
    Err(Refusal::Invalid(format!("{field}: plain text").into()))
}

/// As [`plain`], for what may be missing.
pub fn plain_option(
    field: &'static str,
    text: Option<String>,
    max_chars: usize,
) -> Result<Option<String>, Refusal> {
    match text.map(|text| plain(field, &text, max_chars)) {
        None | Some(Err(Refusal::Required(_))) => Ok(None),
        Some(text) => text.map(Some),
    }
}

/// An optional text of bounded length; an empty one is none.
pub fn short(
    field: &'static str,
    text: Option<String>,
    max_chars: usize,
) -> Result<Option<String>, Refusal> {
    match text {
        Some(text) if text.chars().count() > max_chars => {
            Err(Refusal::Invalid(format!("{field}: at most {max_chars} characters").into()))
        }
        Some(text) if text.contains('\0') => {
            Err(Refusal::Invalid(format!("{field}: no zero characters").into()))
        }
        text => Ok(text.filter(|text| !text.is_empty())),
    }
}

/// A link somebody may follow: http, https, or a path on this site.
pub fn link(field: &'static str, link: Option<String>) -> Result<Option<String>, Refusal> {
    let Some(link) = short(field, link, 2_048)? else { return Ok(None) };
    let is_path = link.starts_with('/')
        && !link.starts_with("//")
        && !link.contains(['\\', '\t', '\n', '\r']);
    let is_web =
        || url::Url::parse(&link).is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
    if is_path || is_web() {
        Ok(Some(link))
    } else {
        Err(Refusal::Invalid(format!("{field}: http, https or a path on this site").into()))
    }
}

/// A number of bytes that every client can represent.
pub fn byte_count(field: &'static str, bytes: Option<u64>) -> Result<Option<i64>, Refusal> {
    const MAX_SAFE_INTEGER: i64 = 9_007_199_254_740_991;
    bytes
        .map(|bytes| match i64::try_from(bytes) {
            Ok(bytes) if bytes <= MAX_SAFE_INTEGER => Ok(bytes),
            _ => Err(Refusal::Invalid(format!("{field}: too large").into())),
        })
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_no_markup_is_not_changed_by_cleaning() {
        let plain: Vec<char> = ('\u{1}'..=char::MAX).filter(|one| !MARKUP.contains(one)).collect();
        for some in plain.chunks(10_000) {
            let text: String = some.iter().collect();
            assert_eq!(CLEANER.clean(&text).to_string(), text);
        }
        for one in MARKUP {
            let text = format!("a{one}b");
            assert_ne!(CLEANER.clean(&text).to_string(), text, "{one:?} needs no care");
        }
    }

    #[test]
    fn only_harmless_html_is_kept() {
        for (raw, clean) in [
            ("hello", "hello"),
            ("<b>bold</b><script>alert(1)</script>", "<b>bold</b>"),
            ("<img src=x onerror=alert(1)>hi", "hi"),
            ("<a href=\"javascript:alert(1)\">x</a>", "<a>x</a>"),
            (
                "<a href=\"https://x.example\" target=\"_blank\" onclick=\"y\">x</a>",
                "<a href=\"https://x.example\" target=\"_blank\">x</a>",
            ),
            ("<p>a<br>b</p>", "<p>a<br>b</p>"),
            ("2 < 3 & 4", "2 &lt; 3 &amp; 4"),
        ] {
            assert_eq!(sanitise(raw).unwrap(), clean);
        }
    }

    #[test]
    fn nothing_to_show_counts_as_missing() {
        let unseen = [
            "<b></b>",
            "<p><br> </p>",
            "<a href=\"https://x.example\"></a>",
            "\u{200b}",
            "<b>&nbsp;</b>",
        ];
        for raw in ["", "   ", "<script>alert(1)</script>"].into_iter().chain(unseen) {
            assert!(matches!(sanitise(raw), Err(Refusal::Required(_))), "{raw:?}");
        }
        for raw in ["<b>.</b>", "\u{200d}\u{1f469}", "&lt;", "<p>2 &lt; 3</p>"] {
            assert!(sanitise(raw).is_ok(), "{raw:?}");
        }
    }

    #[test]
    fn plain_text_is_kept_as_it_is_and_markup_is_not() {
        for (raw, plain_text) in [
            ("Cardiology & co", "Cardiology & co"),
            (" 2 < 3, a\u{a0}b\nc ", "2 < 3, a\u{a0}b\nc"),
            ("<b>bold</b><script>alert(1)</script>", "bold"),
            ("&lt;img src=x onerror=alert(1)&gt;x", "x"),
            ("&amp;lt;b&amp;gt;x", "x"),
            ("<scr<script>ipt>x", "ipt>x"),
        ] {
            assert_eq!(plain("name", raw, 100).unwrap(), plain_text, "{raw}");
        }
        assert!(plain("name", &format!("&{}lt;b&gt;x", "amp;".repeat(20)), 200).is_err());
    }

    #[test]
    fn the_limit_counts_characters_after_composition() {
        assert!(sanitise(&"e\u{301}".repeat(4_000)).is_ok());
        assert!(matches!(sanitise(&"e".repeat(4_001)), Err(Refusal::TooLarge(_))));
    }

    #[test]
    fn links_lead_to_the_web_or_to_this_site() {
        for good in ["https://x.example/a", "http://x.example", "/uploads/a.pdf"] {
            assert_eq!(link("fileUrl", Some(good.into())).unwrap().as_deref(), Some(good));
        }
        for bad in
            ["javascript:alert(1)", "//evil.example", "data:text/html,x", "uploads/a", "/\\e"]
        {
            assert!(link("fileUrl", Some(bad.into())).is_err(), "{bad}");
        }
    }
}
