//! A paper: questions with their keys. It never changes once somebody sits it; a change makes a
//! new version.

use std::collections::HashSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::number::Number;
use crate::{ids::QuestionId, refusal::Refusal};

/// Questions of a paper.
pub const MAX_QUESTIONS: usize = 500;
/// Bytes of a paper, as JSON.
pub const MAX_PAPER_BYTES: usize = 512 * 1024;
/// Bytes of an answer that is not an essay.
pub const MAX_ANSWER_BYTES: usize = 10 * 1024;
/// Bytes of an essay.
pub const MAX_ESSAY_BYTES: usize = 256 * 1024;
/// Bytes of a number that is written as a text.
const MAX_NUMBER_BYTES: usize = 64;
const MAX_TEXT_CHARS: usize = 20_000;
const MAX_OPTIONS: usize = 50;
const MAX_ACCEPTED: usize = 100;

/// Hundredths of a point. On the wire a number with at most two decimals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Points(pub i64);

/// More than any paper needs.
const MAX_POINTS: f64 = 1_000_000.0;

impl Points {
    /// From a number of points with at most two decimals.
    pub fn new(points: f64) -> Option<Self> {
        let hundredths = (points * 100.0).round();
        let is_sound = points.abs() <= MAX_POINTS && (hundredths / 100.0 - points).abs() < 1e-9;
        #[expect(clippy::cast_possible_truncation, reason = "at most a hundred million")]
        is_sound.then_some(Self(hundredths as i64))
    }
}

impl Serialize for Points {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0 % 100 == 0 {
            return serializer.serialize_i64(self.0 / 100);
        }
        #[expect(clippy::cast_precision_loss, reason = "at most a hundred million")]
        serializer.serialize_f64(self.0 as f64 / 100.0)
    }
}

impl<'de> Deserialize<'de> for Points {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(f64::deserialize(deserializer)?)
            .ok_or_else(|| serde::de::Error::custom("points have at most two decimals"))
    }
}

impl JsonSchema for Points {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Points".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "number", "multipleOf": 0.01 })
    }
}

/// How a question is answered and marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The answer is the index of an option.
    SingleChoice,
    /// The answer is an array of indexes of options.
    MultipleChoice,
    /// The answer is a number, or a text that is one.
    Numeric,
    /// The answer is a text, compared with the accepted ones.
    ShortText,
    /// The answer is a text that somebody reads.
    Essay,
}

/// How a multiple choice question is marked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scoring {
    /// Exactly the right options, or nothing.
    #[default]
    AllOrNothing,
    /// Each right option earns its share, each wrong one costs a share; never below nothing.
    Partial,
    /// As `partial`, but down to minus the points of the question.
    Negative,
}

/// A question as a backend writes it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QuestionInput {
    /// `q1`, `q2`, … by place unless given. The same id in a later version is the same question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<QuestionId>,
    pub kind: Kind,
    pub text: String,
    /// For the choices: at least two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<Vec<String>>,
    /// Single choice: an index, or an array of one. Multiple choice: an array of indexes. Numeric:
    /// a number. Short text: a text or an array of texts. Essay: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correct: Option<Value>,
    /// 1 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub points: Option<Points>,
    /// Multiple choice: `all_or_nothing` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scoring: Option<Scoring>,
    /// Numeric: how far an answer may be off; 0 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerance: Option<f64>,
    /// Short text: whether capitals matter; they do not unless said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub case_sensitive: Option<bool>,
}

/// A question with its key. Never serialised towards a student: see [`ShownQuestion`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Question {
    pub id: QuestionId,
    pub text: String,
    pub points: Points,
    pub key: Key,
}

/// What is right.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Key {
    SingleChoice { options: Vec<String>, correct: usize },
    MultipleChoice { options: Vec<String>, correct: Vec<usize>, scoring: Scoring },
    Numeric { correct: Number, tolerance: Number },
    ShortText { accepted: Vec<String>, case_sensitive: bool },
    Essay,
}

/// A question without anything of its key.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ShownQuestion {
    pub id: QuestionId,
    pub kind: Kind,
    pub text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<Vec<String>>,
    pub points: Points,
}

impl Question {
    pub fn kind(&self) -> Kind {
        match self.key {
            Key::SingleChoice { .. } => Kind::SingleChoice,
            Key::MultipleChoice { .. } => Kind::MultipleChoice,
            Key::Numeric { .. } => Kind::Numeric,
            Key::ShortText { .. } => Kind::ShortText,
            Key::Essay => Kind::Essay,
        }
    }

    /// This question with the key, and the points, of a later version of it: an answer is an index of
    /// an option as it was shown. `None` where that is no version of it: of another kind, or with
    /// something right that was no option.
    fn with_key_of(&self, later: &Self) -> Option<Self> {
        let key = match (&self.key, &later.key) {
            (Key::SingleChoice { options: own, .. }, Key::SingleChoice { options, correct }) => {
                Key::SingleChoice {
                    options: own.clone(),
                    correct: place_of(own, options, *correct)?,
                }
            }
            (
                Key::MultipleChoice { options: own, .. },
                Key::MultipleChoice { options, correct, scoring },
            ) => {
                let correct = correct.iter().map(|&correct| place_of(own, options, correct));
                let mut correct = correct.collect::<Option<Vec<_>>>()?;
                correct.sort_unstable();
                Key::MultipleChoice { options: own.clone(), correct, scoring: *scoring }
            }
            _ if self.kind() == later.kind() => later.key.clone(),
            _ => return None,
        };
        Some(Self { id: self.id.clone(), text: self.text.clone(), points: later.points, key })
    }

    fn written(&self) -> QuestionInput {
        let mut input = QuestionInput {
            id: Some(self.id.clone()),
            kind: self.kind(),
            text: self.text.clone(),
            options: self.shown().options,
            correct: None,
            points: Some(self.points),
            scoring: None,
            tolerance: None,
            case_sensitive: None,
        };
        match &self.key {
            Key::SingleChoice { correct, .. } => input.correct = Some(Value::from(*correct)),
            Key::MultipleChoice { correct, scoring, .. } => {
                input.correct = Some(correct.iter().copied().collect());
                input.scoring = Some(*scoring);
            }
            Key::Numeric { correct, tolerance } => {
                input.correct = Some(correct.to_value());
                input.tolerance = tolerance.to_value().as_f64();
            }
            Key::ShortText { accepted, case_sensitive } => {
                input.correct = Some(accepted.iter().cloned().collect());
                input.case_sensitive = Some(*case_sensitive);
            }
            Key::Essay => {}
        }
        input
    }

    pub fn shown(&self) -> ShownQuestion {
        let options = match &self.key {
            Key::SingleChoice { options, .. } | Key::MultipleChoice { options, .. } => {
                Some(options.clone())
            }
            Key::Numeric { .. } | Key::ShortText { .. } | Key::Essay => None,
        };
        ShownQuestion {
            id: self.id.clone(),
            kind: self.kind(),
            text: self.text.clone(),
            options,
            points: self.points,
        }
    }

    /// Whether something can be an answer at all; `null` takes an answer back.
    pub fn check(&self, answer: &Value) -> Result<(), Refusal> {
        if answer.is_null() {
            return Ok(());
        }
        let invalid = |text: &'static str| Err(Refusal::Invalid(text.into()));
        let text_of_at_most = |max: usize| match answer.as_str() {
            None => invalid("the answer to this question is a text"),
            Some(text) if text.len() > max => {
                Err(Refusal::TooLarge(format!("an answer has at most {max} bytes").into()))
            }
            Some(_) => Ok(()),
        };
        match &self.key {
            Key::SingleChoice { options, .. } => match index(answer, options.len()) {
                Some(_) => Ok(()),
                None => invalid("the answer to this question is the index of an option"),
            },
            Key::MultipleChoice { options, .. } => match indexes(answer, options.len()) {
                Some(_) => Ok(()),
                None => invalid("the answer to this question is an array of indexes of options"),
            },
            Key::Numeric { .. } => match Number::of(answer) {
                Some(_) if answer.is_string() => text_of_at_most(MAX_NUMBER_BYTES),
                Some(_) => Ok(()),
                None => invalid("the answer to this question is a number"),
            },
            Key::ShortText { .. } => text_of_at_most(MAX_ANSWER_BYTES),
            Key::Essay => text_of_at_most(MAX_ESSAY_BYTES),
        }
    }
}

/// A whole number below `count`.
pub(super) fn index(value: &Value, count: usize) -> Option<usize> {
    usize::try_from(value.as_u64()?).ok().filter(|index| *index < count)
}

/// Different whole numbers below `count`, sorted.
pub(super) fn indexes(value: &Value, count: usize) -> Option<Vec<usize>> {
    let all: Option<Vec<usize>> =
        value.as_array()?.iter().map(|value| index(value, count)).collect();
    let mut all = all?;
    let given = all.len();
    all.sort_unstable();
    all.dedup();
    (all.len() == given).then_some(all)
}

/// The questions of one version.
#[derive(Clone, Debug, PartialEq)]
pub struct Paper {
    pub questions: Vec<Question>,
}

impl Paper {
    /// Checks what a backend wrote. The first fault is named by its place.
    pub fn new(inputs: &[QuestionInput]) -> Result<Self, Refusal> {
        if inputs.len() > MAX_QUESTIONS {
            return Err(fault("questions", &format!("at most {MAX_QUESTIONS}")));
        }
        let questions: Vec<Question> = inputs
            .iter()
            .enumerate()
            .map(|(place, input)| question(place, input))
            .collect::<Result<_, Refusal>>()?;
        let mut ids = HashSet::new();
        if let Some(twice) = questions.iter().find(|question| !ids.insert(&question.id)) {
            return Err(fault("questions", &format!("the id {} occurs twice", twice.id)));
        }
        let paper = Self { questions };
        if paper.to_json()?.len() > MAX_PAPER_BYTES {
            return Err(Refusal::TooLarge(
                format!("a paper has at most {MAX_PAPER_BYTES} bytes").into(),
            ));
        }
        Ok(paper)
    }

    /// As a backend would write it.
    pub fn written(&self) -> Vec<QuestionInput> {
        self.questions.iter().map(Question::written).collect()
    }

    pub fn to_json(&self) -> Result<String, Refusal> {
        serde_json::to_string(&self.questions).map_err(Refusal::internal)
    }

    pub fn from_json(text: &str) -> Result<Self, Refusal> {
        let questions = serde_json::from_str(text).map_err(|error| {
            Refusal::internal(format!("a stored paper is not readable: {error}"))
        })?;
        Ok(Self { questions })
    }

    /// The question of that place.
    pub fn question(&self, place: usize) -> Result<&Question, Refusal> {
        self.questions.get(place).ok_or_else(|| {
            let count = self.questions.len();
            Refusal::UnknownQuestion(format!("the paper has {count} questions").into())
        })
    }

    /// These questions with the keys, and the points, that a later version has for them.
    #[must_use]
    pub fn with_keys_of(&self, later: &Self) -> Self {
        let questions = self.questions.iter().map(|question| {
            let same = later.questions.iter().find(|of| of.id == question.id);
            same.and_then(|same| question.with_key_of(same)).unwrap_or_else(|| question.clone())
        });
        Self { questions: questions.collect() }
    }

    /// The question of that id.
    pub fn find(&self, id: &QuestionId) -> Option<&Question> {
        self.questions.iter().find(|question| question.id == *id)
    }

    /// The most anybody can earn.
    pub fn max_points(&self) -> Points {
        Points(self.questions.iter().map(|question| question.points.0).sum())
    }

    /// The order of an attempt, drawn from its id: the same on every node and after every crash.
    pub fn shuffled(&self, seed: &str) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.questions.len()).collect();
        order.sort_by_cached_key(|place| Sha256::digest(format!("{seed}/{place}")).to_vec());
        order
    }
}

/// A fingerprint of a stored paper, for the journal.
pub fn fingerprint(json: &str) -> String {
    super::journal::hex(&Sha256::digest(json))
}

fn fault(place: &str, what: &str) -> Refusal {
    Refusal::Invalid(format!("{place}: {what}").into())
}

fn question(place: usize, input: &QuestionInput) -> Result<Question, Refusal> {
    let at = |field: &str| format!("questions[{place}].{field}");
    let text = |field: &str, text: &str| {
        let chars = text.chars().count();
        if text.trim().is_empty() || chars > MAX_TEXT_CHARS {
            return Err(fault(&at(field), &format!("1 to {MAX_TEXT_CHARS} characters")));
        }
        Ok(text.to_owned())
    };
    let only_for = |field: &str, is_given: bool, kinds: &[Kind]| {
        if is_given && !kinds.contains(&input.kind) {
            return Err(fault(&at(field), "not for questions of this kind"));
        }
        Ok(())
    };
    only_for("options", input.options.is_some(), &[Kind::SingleChoice, Kind::MultipleChoice])?;
    only_for("scoring", input.scoring.is_some(), &[Kind::MultipleChoice])?;
    only_for("tolerance", input.tolerance.is_some(), &[Kind::Numeric])?;
    only_for("caseSensitive", input.case_sensitive.is_some(), &[Kind::ShortText])?;
    if input.kind == Kind::Essay && input.correct.as_ref().is_some_and(|value| !value.is_null()) {
        return Err(fault(&at("correct"), "an essay has no key"));
    }
    let options = || {
        let options = input.options.as_deref().unwrap_or_default();
        if options.len() < 2 || options.len() > MAX_OPTIONS {
            return Err(fault(&at("options"), &format!("2 to {MAX_OPTIONS} options")));
        }
        options
            .iter()
            .enumerate()
            .map(|(n, option)| text(&format!("options[{n}]"), option))
            .collect::<Result<Vec<_>, Refusal>>()
    };
    let correct = input.correct.as_ref().unwrap_or(&Value::Null);
    let key = match input.kind {
        Kind::SingleChoice => {
            let options = options()?;
            let given = match correct.as_array().map(Vec::as_slice) {
                Some([only]) => only,
                _ => correct,
            };
            let correct = index(given, options.len())
                .ok_or_else(|| fault(&at("correct"), "the index of one option"))?;
            Key::SingleChoice { options, correct }
        }
        Kind::MultipleChoice => {
            let options = options()?;
            let correct = indexes(correct, options.len())
                .filter(|indexes| !indexes.is_empty())
                .ok_or_else(|| fault(&at("correct"), "an array of different indexes of options"))?;
            Key::MultipleChoice { options, correct, scoring: input.scoring.unwrap_or_default() }
        }
        Kind::Numeric => {
            let number = |value: &Value| Number::of(value).filter(|_| value.is_number());
            let correct = number(correct).ok_or_else(|| fault(&at("correct"), "a number"))?;
            let tolerance = Value::from(input.tolerance.unwrap_or(0.0));
            let tolerance = number(&tolerance)
                .filter(|_| input.tolerance.is_none_or(|tolerance| tolerance >= 0.0))
                .ok_or_else(|| fault(&at("tolerance"), "a number, not negative"))?;
            Key::Numeric { correct, tolerance }
        }
        Kind::ShortText => {
            let accepted = match correct {
                Value::String(only) => vec![Value::String(only.clone())],
                Value::Array(several) => several.clone(),
                _ => Vec::new(),
            };
            if accepted.is_empty() || accepted.len() > MAX_ACCEPTED {
                return Err(fault(&at("correct"), "a text, or an array of texts"));
            }
            let accepted = accepted
                .iter()
                .map(|value| {
                    let accepted = value.as_str().filter(|text| !text.trim().is_empty());
                    let accepted = accepted.filter(|text| text.len() <= MAX_ANSWER_BYTES);
                    accepted.map(str::to_owned).ok_or_else(|| fault(&at("correct"), "texts"))
                })
                .collect::<Result<Vec<_>, Refusal>>()?;
            Key::ShortText { accepted, case_sensitive: input.case_sensitive.unwrap_or(false) }
        }
        Kind::Essay => Key::Essay,
    };
    let points = input.points.unwrap_or(Points(100));
    if points < Points(0) {
        return Err(fault(&at("points"), "not negative"));
    }
    let id = match &input.id {
        Some(id) => id.clone(),
        None => QuestionId::new(format!("q{}", place + 1)).map_err(Refusal::internal)?,
    };
    Ok(Question { id, text: text("text", &input.text)?, points, key })
}

/// Where an option of a later version was shown: by its text, or at its place where only the text has
/// been mended.
fn place_of(own: &[String], later: &[String], place: usize) -> Option<usize> {
    let text = later.get(place)?;
    if own.get(place) == Some(text) {
        return Some(place);
    }
    let is_mended = || own.get(place).is_some_and(|text| !later.contains(text));
    own.iter().position(|option| option == text).or_else(|| is_mended().then_some(place))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn inputs(questions: Value) -> Vec<QuestionInput> {
        serde_json::from_value(questions).unwrap()
    }

    fn fault_of(question: &Value) -> String {
        match Paper::new(&inputs(json!([question]))) {
            Ok(_) => "none".into(),
            Err(refusal) => refusal.to_string(),
        }
    }

    #[test]
    fn a_fault_is_named_by_its_place() {
        let choice = |correct: Value| json!({ "kind": "single_choice", "text": "?", "options": ["a", "b"], "correct": correct });
        assert_eq!(fault_of(&choice(json!(1))), "none");
        assert_eq!(fault_of(&choice(json!([1]))), "none");
        for wrong in [json!(2), json!(-1), json!("1"), json!(0.5), json!([0, 1]), Value::Null] {
            assert_eq!(fault_of(&choice(wrong)), "questions[0].correct: the index of one option");
        }
        let numeric = json!({ "kind": "numeric", "text": "?", "correct": 3, "tolerance": -1.0 });
        assert_eq!(fault_of(&numeric), "questions[0].tolerance: a number, not negative");
        let essay = json!({ "kind": "essay", "text": "?", "options": ["a", "b"] });
        assert_eq!(fault_of(&essay), "questions[0].options: not for questions of this kind");
        let twice = json!({ "id": "a", "kind": "essay", "text": "?" });
        let twice = Paper::new(&inputs(json!([twice, twice]))).unwrap_err();
        assert_eq!(twice.to_string(), "questions: the id a occurs twice");
    }

    #[test]
    fn nothing_of_a_key_is_shown() {
        let paper = Paper::new(&inputs(json!([
            { "kind": "numeric", "text": "?", "correct": 31415, "tolerance": 92653 },
            { "kind": "short_text", "text": "?", "correct": ["chlorophyll"] },
            { "kind": "single_choice", "text": "?", "options": ["a", "b"], "correct": 1 },
        ])))
        .unwrap();
        let shown: Vec<ShownQuestion> = paper.questions.iter().map(Question::shown).collect();
        let shown = serde_json::to_string(&shown).unwrap();
        for secret in ["31415", "92653", "chlorophyll", "correct", "accepted", "tolerance"] {
            assert!(!shown.contains(secret), "{secret} in {shown}");
        }
    }

    #[test]
    fn a_later_key_is_applied_to_the_options_as_they_were_shown() {
        let paper = |options: [&str; 3], one: usize, several: [usize; 2], kind: &str| {
            let questions = json!([
                { "id": "one", "kind": "single_choice", "text": "?", "options": options, "correct": one },
                { "id": "some", "kind": kind, "text": "?", "options": options, "correct": several },
            ]);
            Paper::new(&inputs(questions)).unwrap()
        };
        let own = paper(["a", "b", "c"], 0, [0, 1], "multiple_choice");
        let right = |later: &Paper| {
            let paper = own.with_keys_of(later);
            let correct = |key: &Key| match key {
                Key::SingleChoice { correct, .. } => vec![*correct],
                Key::MultipleChoice { correct, .. } => correct.clone(),
                _ => Vec::new(),
            };
            [0, 1].map(|place: usize| correct(&paper.questions[place].key))
        };
        let of = |options, one, several| right(&paper(options, one, several, "multiple_choice"));
        assert_eq!(of(["a", "b", "c"], 2, [1, 2]), [vec![2], vec![1, 2]], "another key");
        assert_eq!(of(["c", "a", "b"], 0, [1, 0]), [vec![2], vec![0, 2]], "another order");
        assert_eq!(of(["a", "b", "C"], 2, [0, 2]), [vec![2], vec![0, 2]], "a mended text");
        assert_eq!(of(["b", "c", "d"], 2, [1, 2]), [vec![0], vec![0, 1]], "no option of it");
    }

    #[test]
    fn points_are_hundredths() {
        assert_eq!(serde_json::from_str::<Points>("2.5").unwrap(), Points(250));
        assert_eq!(serde_json::from_str::<Points>("0.07").unwrap(), Points(7));
        assert!(serde_json::from_str::<Points>("0.001").is_err());
        assert_eq!(serde_json::to_string(&[Points(250), Points(300)]).unwrap(), "[2.5,3]");
    }

    #[test]
    fn an_order_has_every_question_once_and_follows_from_the_seed() {
        let questions = (0..40).map(|_| json!({ "kind": "essay", "text": "?" })).collect();
        let paper = Paper::new(&inputs(Value::Array(questions))).unwrap();
        let (one, other) = (paper.shuffled("one"), paper.shuffled("other"));
        assert_eq!(one, paper.shuffled("one"));
        assert_ne!(one, other);
        let mut sorted = one;
        sorted.sort_unstable();
        assert_eq!(sorted, (0..40).collect::<Vec<_>>());
    }
}
