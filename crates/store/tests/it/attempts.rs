//! An attempt goes only where its rules allow, whatever happens in whatever order.

use std::{collections::BTreeMap, time::Duration};

use carillon_domain::exam::{AttemptStatus, control::Action};
use carillon_domain::ports::Store as _;
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::{
    exams::{answer, complete, control, exam_id, findings, finish_all, provide, session},
    world::{World, caller, tenant},
};

#[derive(Clone, Debug)]
enum Step {
    Join,
    Answer(usize, usize),
    Complete,
    Pause,
    Resume,
    Extend(i64),
    Submit,
    /// Seconds pass, and what is due is done.
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => Just(Step::Join),
        6 => (0..10usize, 0..4usize).prop_map(|(at, value)| Step::Answer(at, value)),
        1 => Just(Step::Complete),
        2 => Just(Step::Pause),
        2 => Just(Step::Resume),
        1 => (1..120i64).prop_map(Step::Extend),
        1 => Just(Step::Submit),
        3 => (1..40u64).prop_map(Step::Pass),
    ];
    proptest::collection::vec(step, 1..40)
}

/// What the rules say, in milliseconds: the clock of the world ticks at every look, so instants
/// closer than this to a limit are left open.
const UNSURE: i64 = 500;
const GRACE: i64 = 2_000;

/// The plainest form of an attempt of one minute.
#[derive(Debug, Default)]
struct Model {
    deadline: Option<i64>,
    paused_at: Option<i64>,
    is_over: bool,
    is_forced: bool,
    answers: BTreeMap<usize, usize>,
}

impl Model {
    fn runs(&self) -> bool {
        self.deadline.is_some() && !self.is_over && !self.is_forced
    }

    /// Whether an answer counts now; `None` where the clock is too close to the end.
    fn is_open(&self, now: i64) -> Option<bool> {
        if !self.runs() || self.paused_at.is_some() {
            return Some(false);
        }
        let left = self.deadline? + GRACE - now;
        (left.abs() > UNSURE).then_some(left > 0)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn an_attempt_goes_only_where_its_rules_allow(steps in steps()) {
        let runtime = Runtime::new().unwrap();
        runtime.block_on(async {
            let world = World::sqlite().await;
            provide(&world, json!({ "durationMinutes": 1 })).await;
            let ana = caller("t", "ana");
            let now = || world.app.clock.now().0;
            let mut model = Model::default();
            for step in steps {
                match step {
                    Step::Join => {
                        let session = session(&world, &ana).await;
                        if model.deadline.is_none() {
                            model.deadline = Some(now() + 60_000);
                        }
                        let expected = match (model.is_over, model.paused_at) {
                            (true, _) => "COMPLETED",
                            (false, Some(_)) => "PAUSED",
                            (false, None) => "IN_PROGRESS",
                        };
                        assert_eq!(session["status"], expected);
                    }
                    Step::Answer(at, value) => {
                        let open = model.is_open(now());
                        let is_kept = answer(&world, &ana, at, json!(value)).await.is_ok();
                        assert!(open.is_none_or(|open| open == is_kept), "{model:?}");
                        if is_kept {
                            model.answers.insert(at, value);
                        }
                    }
                    Step::Complete => {
                        let is_done = complete(&world, &ana).await.is_ok();
                        let may = model.deadline.is_some()
                            && (model.is_over || model.is_forced || model.paused_at.is_none());
                        assert_eq!(is_done, may, "{model:?}");
                        model.is_over |= is_done;
                    }
                    Step::Pause | Step::Resume | Step::Submit | Step::Extend(_) => {
                        let (action, seconds) = match step {
                            Step::Pause => (Action::Pause, None),
                            Step::Resume => (Action::Resume, None),
                            Step::Extend(seconds) => (Action::Extend, Some(seconds)),
                            _ => (Action::Submit, None),
                        };
                        let at = now();
                        let reply = control(&world, action, seconds).await.unwrap();
                        // What is past its end is being made final, and nobody changes it.
                        let has_ended = model.paused_at.is_none()
                            && model.deadline.is_some_and(|deadline| at > deadline + GRACE);
                        let has_changed = reply["affected"] == 1;
                        if has_changed {
                            assert!(model.runs() && !has_ended, "{step:?} {model:?}");
                        }
                        match (step, model.paused_at) {
                            _ if !has_changed => {}
                            (Step::Pause, None) => model.paused_at = Some(at),
                            (Step::Resume, Some(paused)) => {
                                model.deadline = model.deadline.map(|of| of + at - paused);
                                model.paused_at = None;
                            }
                            (Step::Extend(seconds), _) => {
                                model.deadline = model.deadline.map(|of| of + seconds * 1_000);
                            }
                            (Step::Submit, _) => model.is_forced = true,
                            (step, _) => panic!("{step:?} changed {model:?}"),
                        }
                    }
                    Step::Pass(seconds) => {
                        world.advance(Duration::from_secs(seconds));
                        finish_all(&world).await;
                        let deadline = model.deadline.filter(|_| model.paused_at.is_none());
                        // The job takes what has been over for a while.
                        let is_due = deadline.is_some_and(|of| now() > of + GRACE + 2 * UNSURE);
                        model.is_over |= model.is_forced || (is_due && model.deadline.is_some());
                        if let Some(attempt) = stored(&world).await {
                            let is_final = attempt == AttemptStatus::Completed;
                            assert!(is_final || !model.is_over, "{model:?}");
                            model.is_over = is_final;
                        }
                    }
                }
            }
            let mut reads = world.store.read().await.unwrap();
            let results = reads.results(&tenant("t"), &exam_id(), None, None, 10).await.unwrap();
            assert_eq!(results.len(), usize::from(model.is_over), "{model:?}");
            if let Some(result) = results.first() {
                let kept = |(at, value): (usize, &Value)| Some((at, value.as_u64()?));
                let kept: BTreeMap<usize, u64> =
                    result.answers.iter().enumerate().filter_map(kept).collect();
                let expected: BTreeMap<usize, u64> =
                    model.answers.iter().map(|(at, value)| (*at, *value as u64)).collect();
                assert_eq!(kept, expected);
            }
            drop(reads);
            assert_eq!(findings(&world).await, [""; 0]);
        });
    }
}

async fn stored(world: &World) -> Option<AttemptStatus> {
    let mut reads = world.store.read().await.unwrap();
    let attempts = reads.attempts(&tenant("t"), &exam_id(), None, None, 1).await.unwrap();
    attempts.first().map(|attempt| attempt.status)
}
