//! Marking. The server does it, from the paper the attempt began with; nothing a client says about
//! its score is heard.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use unicode_normalization::UnicodeNormalization as _;

use super::paper::{Key, Paper, Points, Question, Scoring, index, indexes};
use crate::ids::QuestionId;

/// Points given by hand, by question; they count instead of what the key says.
pub type Awards = BTreeMap<QuestionId, Points>;

/// What an attempt earned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// Questions answered right: with all of their points.
    pub right: i64,
    pub questions: i64,
    pub points: Points,
    pub max_points: Points,
    /// Whether somebody has still to read an essay.
    pub pending_review: bool,
}

/// What one answer earned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Earned(Points),
    ToReview,
}

impl Paper {
    /// Marks the answers, by place in the paper. A total is never below nothing.
    pub fn mark(&self, answers: &BTreeMap<usize, Value>, awards: &Awards) -> Marks {
        let mut marks = Marks {
            right: 0,
            questions: i64::try_from(self.questions.len()).unwrap_or(i64::MAX),
            points: Points(0),
            max_points: self.max_points(),
            pending_review: false,
        };
        for (place, question) in self.questions.iter().enumerate() {
            let mark = match awards.get(&question.id) {
                // It may have been worth more when it was given.
                Some(points) => Mark::Earned((*points).min(question.points)),
                None => question.mark(answers.get(&place).unwrap_or(&Value::Null)),
            };
            match mark {
                Mark::Earned(points) => {
                    let was_answered = answers.get(&place).is_some_and(|answer| !answer.is_null());
                    let is_right = if question.points == Points(0) {
                        answers.get(&place).is_some_and(|answer| question.is_right(answer))
                    } else {
                        points >= question.points && (was_answered || points > Points(0))
                    };
                    marks.right += i64::from(is_right);
                    marks.points.0 += points.0;
                }
                Mark::ToReview => marks.pending_review = true,
            }
        }
        marks.points.0 = marks.points.0.max(0);
        marks
    }
}

impl Question {
    /// Whether an answer earns all there is, were there anything to earn.
    fn is_right(&self, answer: &Value) -> bool {
        let worth = Points(100);
        Self { points: worth, ..self.clone() }.mark(answer) == Mark::Earned(worth)
    }

    /// `null` is no answer and earns nothing. A value of another type than the question's is
    /// wrong: it could not be saved, but an imported one may be.
    fn mark(&self, answer: &Value) -> Mark {
        if answer.is_null() {
            return Mark::Earned(Points(0));
        }
        let all_if = |is_right: bool| if is_right { self.points } else { Points(0) };
        Mark::Earned(match &self.key {
            Key::SingleChoice { options, correct } => {
                all_if(index(answer, options.len()) == Some(*correct))
            }
            Key::MultipleChoice { options, correct, scoring } => {
                let chosen = indexes(answer, options.len()).unwrap_or_default();
                match scoring {
                    Scoring::AllOrNothing => all_if(chosen == *correct),
                    Scoring::Partial => Points(self.share(&chosen, correct).0.max(0)),
                    Scoring::Negative => self.share(&chosen, correct),
                }
            }
            Key::Numeric { correct, tolerance } => all_if(
                super::number::Number::of(answer)
                    .is_some_and(|number| number.is_near(*correct, *tolerance)),
            ),
            Key::ShortText { accepted, case_sensitive } => {
                all_if(answer.as_str().is_some_and(|text| {
                    let text = plain(text, *case_sensitive);
                    accepted.iter().any(|accepted| plain(accepted, *case_sensitive) == text)
                }))
            }
            Key::Essay if answer.as_str().is_some_and(|text| text.trim().is_empty()) => Points(0),
            Key::Essay => return Mark::ToReview,
        })
    }

    /// The share of right choices less wrong ones, rounded towards nothing; at least minus all.
    fn share(&self, chosen: &[usize], correct: &[usize]) -> Points {
        let count = |is_right: bool| {
            let of = chosen.iter().filter(|choice| correct.contains(choice) == is_right);
            i64::try_from(of.count()).unwrap_or(i64::MAX)
        };
        let all = i64::try_from(correct.len()).unwrap_or(i64::MAX).max(1);
        let net = (count(true) - count(false)).max(-all);
        Points(self.points.0 * net / all)
    }
}

/// Composed characters, single spaces, and small letters unless capitals matter.
fn plain(text: &str, case_sensitive: bool) -> String {
    let text: String = text.nfc().collect();
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if case_sensitive { text } else { text.to_lowercase() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn paper(questions: Value) -> Paper {
        let inputs: Vec<super::super::paper::QuestionInput> =
            serde_json::from_value(questions).unwrap();
        Paper::new(&inputs).unwrap()
    }

    fn points(question: &Value, answer: Value) -> (i64, i64, bool) {
        let marks = paper(json!([question])).mark(&BTreeMap::from([(0, answer)]), &Awards::new());
        (marks.right, marks.points.0, marks.pending_review)
    }

    #[test]
    fn each_kind_is_marked_by_its_rules() {
        let single = json!({ "kind": "single_choice", "text": "?", "points": 2,
            "options": ["a", "b", "c"], "correct": 1 });
        assert_eq!(points(&single, json!(1)), (1, 200, false));
        for wrong in [json!(0), json!("1"), json!(1.5), Value::Null, json!([1])] {
            assert_eq!(points(&single, wrong), (0, 0, false));
        }
        let multiple = |scoring: &str| {
            json!({ "kind": "multiple_choice", "text": "?", "points": 3, "scoring": scoring,
                "options": ["a", "b", "c", "d", "e"], "correct": [0, 2, 4] })
        };
        assert_eq!(points(&multiple("all_or_nothing"), json!([4, 0, 2])), (1, 300, false));
        assert_eq!(points(&multiple("all_or_nothing"), json!([0, 2])), (0, 0, false));
        assert_eq!(points(&multiple("partial"), json!([0, 2])), (0, 200, false));
        assert_eq!(points(&multiple("partial"), json!([0, 1])), (0, 0, false));
        assert_eq!(points(&multiple("partial"), json!([0, 1, 2, 3, 4])), (0, 100, false));
        assert_eq!(points(&multiple("partial"), json!([0, 2, 4])), (1, 300, false));
        let numeric = json!({ "kind": "numeric", "text": "?", "correct": 9.81, "tolerance": 0.01 });
        assert_eq!(points(&numeric, json!(9.82)), (1, 100, false));
        assert_eq!(points(&numeric, json!("9,8")), (1, 100, false));
        assert_eq!(points(&numeric, json!(9.8201)), (0, 0, false));
        let text = json!({ "kind": "short_text", "text": "?", "correct": ["Crème  brûlée"] });
        assert_eq!(points(&text, json!(" cre\u{300}me bru\u{302}lée ")), (1, 100, false));
        assert_eq!(points(&text, json!("creme brulee")), (0, 0, false));
        let essay = json!({ "kind": "essay", "text": "?" });
        assert_eq!(points(&essay, json!("It was a dark night.")), (0, 0, true));
        assert_eq!(points(&essay, json!("  ")), (0, 0, false));
    }

    #[test]
    fn a_negative_mark_costs_but_a_total_is_never_below_nothing() {
        let negative = json!({ "kind": "multiple_choice", "text": "?", "points": 1,
            "scoring": "negative", "options": ["a", "b", "c"], "correct": [0] });
        let single = json!({ "kind": "single_choice", "text": "?", "points": 2,
            "options": ["a", "b"], "correct": 0 });
        let paper = paper(json!([negative, single]));
        let mark = |answers: [Value; 2]| {
            let answers = answers.into_iter().enumerate().collect();
            paper.mark(&answers, &Awards::new()).points.0
        };
        assert_eq!(mark([json!([1, 2]), json!(0)]), 100);
        assert_eq!(mark([json!([1, 2]), json!(1)]), 0);
    }

    #[test]
    fn an_award_counts_instead_of_the_key() {
        let paper = paper(json!([{ "id": "e", "kind": "essay", "text": "?", "points": 5 }]));
        let answers = BTreeMap::from([(0, json!("words"))]);
        let id = QuestionId::new("e").unwrap();
        let marks = paper.mark(&answers, &Awards::from([(id.clone(), Points(350))]));
        assert_eq!((marks.right, marks.points.0, marks.pending_review), (0, 350, false));
        let marks = paper.mark(&answers, &Awards::from([(id, Points(500))]));
        assert_eq!((marks.right, marks.points.0, marks.pending_review), (1, 500, false));
    }

    /// An independent recount: choices as sets of bits, shares as fractions of integers.
    fn oracle(options: u32, correct: u32, chosen: u32, points: i64, scoring: Scoring) -> i64 {
        let mask = (1 << options) - 1;
        let hits = i64::from((chosen & correct & mask).count_ones());
        let misses = i64::from((chosen & !correct & mask).count_ones());
        let all = i64::from(correct.count_ones());
        match scoring {
            Scoring::AllOrNothing if chosen == correct => points,
            Scoring::AllOrNothing => 0,
            Scoring::Partial if misses >= hits => 0,
            Scoring::Negative if misses > hits => {
                -((points * (misses - hits).min(all)).div_euclid(all))
            }
            Scoring::Partial | Scoring::Negative => (points * (hits - misses)).div_euclid(all),
        }
    }

    proptest! {
        #[test]
        fn multiple_choice_is_what_a_recount_gives(
            options in 2_u32..12,
            correct in 1_u32..4096,
            chosen in 0_u32..4096,
            points in 0_i64..2_000,
            scoring in prop_oneof![
                Just(Scoring::AllOrNothing), Just(Scoring::Partial), Just(Scoring::Negative)
            ],
        ) {
            let mask = (1 << options) - 1;
            let (correct, chosen) = ((correct & mask).max(1), chosen & mask);
            let bits = |of: u32| (0..options).filter(move |bit| of >> bit & 1 == 1).map(|b| b as usize);
            let question = Question {
                id: QuestionId::new("q").unwrap(),
                text: "?".into(),
                points: Points(points),
                key: Key::MultipleChoice {
                    options: (0..options).map(|n| n.to_string()).collect(),
                    correct: bits(correct).collect(),
                    scoring,
                },
            };
            let answer = json!(bits(chosen).collect::<Vec<_>>());
            let expected = oracle(options, correct, chosen, points, scoring);
            prop_assert_eq!(question.mark(&answer), Mark::Earned(Points(expected)));
        }

        #[test]
        fn the_total_is_the_sum_of_its_questions(
            right in proptest::collection::vec(proptest::option::of(0_u64..4), 0..40),
        ) {
            let questions: Vec<Value> = right.iter().map(|_| json!({
                "kind": "single_choice", "text": "?", "options": ["a", "b", "c", "d"], "correct": 2,
            })).collect();
            let paper = paper(Value::Array(questions));
            let answers = right.iter().enumerate()
                .filter_map(|(place, answer)| Some((place, json!((*answer)?)))).collect();
            let marks = paper.mark(&answers, &Awards::new());
            let count = |n: usize| i64::try_from(n).unwrap();
            let expected = count(right.iter().filter(|answer| **answer == Some(2)).count());
            prop_assert_eq!(marks.right, expected);
            prop_assert_eq!(marks.points.0, expected * 100);
            prop_assert_eq!(marks.questions, count(right.len()));
        }
    }
}
