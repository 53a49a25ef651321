//! Exams on top of both databases: one result per attempt, answers that never lose each other,
//! deadlines by the injected clock, and journals that tell the truth.

use std::{slice::from_ref, sync::Arc, time::Duration};

use carillon_domain::{
    Caller, Cx, Done, Effect, Refusal,
    contract::{Address, Handle as _, Scope},
    exam::{
        AttemptStatus,
        control::{Action, ExamControl},
        define::{ExamInput, define},
        exam_answer::ExamAnswer,
        exam_complete::ExamComplete,
        exam_progress::ExamProgress,
        finish,
        join_exam::JoinExam,
        results,
        verify::verify,
    },
    identity::Role,
    ids::ExamId,
    ports::Store as _,
};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::world::{World, caller, exam_settings, reply, tenant};

pub fn exam_id() -> ExamId {
    ExamId::new("anatomy").unwrap()
}

/// Ten questions with four options each; the third is right.
fn paper() -> Value {
    let question = |n: usize| {
        json!({ "id": format!("q{n}"), "kind": "single_choice", "text": format!("Question {n}?"),
            "options": ["a", "b", "c", "d"], "correct": 2, "points": 1.5 })
    };
    (0..10).map(question).collect()
}

pub async fn provide(world: &World, changes: Value) {
    let mut input = json!({ "title": "Anatomy", "durationMinutes": 10, "questions": paper() });
    for (key, value) in changes.as_object().unwrap() {
        input[key] = value.clone();
    }
    let input: ExamInput = serde_json::from_value(input).unwrap();
    let backend = Caller::agent(&tenant("t"), "api:backend");
    let mut cx = Cx::new(&world.app, &backend, Scope::Lane, world.app.clock.now());
    define(&mut cx, exam_id(), &input).await.unwrap();
    cx.commit().await.unwrap();
}

async fn join(world: &World, who: &Caller) -> Result<Done, Refusal> {
    world.ask(who, &JoinExam { exam_id: exam_id() }).await
}

pub async fn answer(
    world: &World,
    who: &Caller,
    at: usize,
    answer: Value,
) -> Result<Value, Refusal> {
    let command = ExamAnswer { exam_id: exam_id(), question_index: at, answer };
    world.ask(who, &command).await.map(|done| reply(&done))
}

async fn snapshot(world: &World, who: &Caller, answers: Value) -> Result<Value, Refusal> {
    let command = ExamProgress {
        exam_id: exam_id(),
        current_question: Some(3),
        time_remaining: Some(1e9),
        answers: serde_json::from_value(answers).unwrap(),
    };
    world.ask(who, &command).await.map(|done| reply(&done))
}

pub async fn complete(world: &World, who: &Caller) -> Result<Done, Refusal> {
    world.ask(who, &ExamComplete { exam_id: exam_id() }).await
}

pub async fn control(
    world: &World,
    action: Action,
    seconds: Option<i64>,
) -> Result<Value, Refusal> {
    let staff = Caller { role: Role::ProgramAdmin, ..caller("t", "admin") };
    let command = ExamControl { exam_id: exam_id(), action, user_ids: None, seconds };
    world.ask(&staff, &command).await.map(|done| reply(&done))
}

fn event(done: &Done, name: &str) -> Option<Value> {
    events(&done.effects, name).pop()
}

fn events(effects: &[Effect], name: &str) -> Vec<Value> {
    let of_name = effects.iter().filter_map(|effect| match effect {
        Effect::Emit(emit) if emit.row.name == name => Some(emit.payload.get()),
        _ => None,
    });
    of_name.map(|payload| serde_json::from_str(payload).unwrap()).collect()
}

pub async fn session(world: &World, who: &Caller) -> Value {
    let done = join(world, who).await.unwrap();
    event(&done, "exam-joined").unwrap()["session"].clone()
}

/// Makes everything final that is due, as the job does; returns what was told.
pub async fn finish_all(world: &World) -> Vec<Effect> {
    let (lease, mut told) = (world.lease().await, Vec::new());
    loop {
        let due = finish::due(&world.app, 64).await.unwrap();
        if due.is_empty() {
            return told;
        }
        // Every world has one tenant with exams.
        let (tenant, ids) = (&due[0].0, due.iter().map(|(_, of)| of.clone()).collect::<Vec<_>>());
        told.extend(finish::finish_due(&world.app, lease, tenant, &ids).await.unwrap().1);
    }
}

pub async fn findings(world: &World) -> Vec<String> {
    let mut reads = world.store.read().await.unwrap();
    let key = exam_settings().journal_key;
    verify(reads.as_mut(), &key, &tenant("t"), &exam_id()).await.unwrap().findings
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_tabs_joining_at_once_are_in_one_attempt() {
    for world in World::each().await {
        provide(&world, json!({ "attemptsAllowed": 2 })).await;
        let world = Arc::new(world);
        for round in 1..=2 {
            let tabs: Vec<_> = (0..20)
                .map(|_| {
                    let world = world.clone();
                    tokio::spawn(async move { session(&world, &caller("t", "ana")).await })
                })
                .collect();
            let mut sessions = Vec::new();
            for tab in tabs {
                let session = tab.await.unwrap();
                assert_eq!(session["attempt_no"], round);
                sessions.push((session["id"].clone(), session["deadline_at"].clone()));
            }
            sessions.dedup();
            assert_eq!(sessions.len(), 1);
            complete(&world, &caller("t", "ana")).await.unwrap();
        }
        let third = session(&world, &caller("t", "ana")).await;
        assert_eq!((&third["status"], &third["attempt_no"]), (&json!("COMPLETED"), &json!(2)));
        assert_eq!(findings(&world).await, [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parallel_answers_never_lose_each_other() {
    for world in World::each().await {
        provide(&world, json!({})).await;
        let world = Arc::new(world);
        session(&world, &caller("t", "ana")).await;
        let saves: Vec<_> = (0..60)
            .map(|n| {
                let world = world.clone();
                tokio::spawn(async move {
                    answer(&world, &caller("t", "ana"), n % 10, json!(n % 4)).await.unwrap()
                })
            })
            .collect();
        for save in saves {
            assert_eq!(save.await.unwrap()["ok"], true);
        }
        let answers = session(&world, &caller("t", "ana")).await["answers"].clone();
        assert_eq!(answers.as_array().unwrap().len(), 10);
        assert!(answers.as_array().unwrap().iter().all(Value::is_number), "{answers}");
        assert_eq!(findings(&world).await, [""; 0]);
    }
}

/// On `SQLite` they are one batch, in which nothing is written before its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_given_at_once_follow_each_other_and_one_that_is_undone_leaves_nothing() {
    for world in World::each().await {
        provide(&world, json!({})).await;
        let ana = caller("t", "ana");
        session(&world, &ana).await;
        let save = async |at, value: i64| {
            let saved = answer(&world, &ana, at, json!(value)).await.unwrap();
            (saved["version"].as_i64().unwrap(), saved["answer"].clone())
        };
        let undone = async || {
            let command = ExamAnswer { exam_id: exam_id(), question_index: 0, answer: json!(3) };
            let mut cx = Cx::new(&world.app, &ana, Scope::Sitting, world.app.clock.now());
            command.handle(&mut cx).await.unwrap();
        };
        let held = world.store.begin(&tenant("t"), Scope::Lane).await.unwrap();
        let batch = async {
            tokio::join!(
                biased;
                save(0, 1), undone(), save(0, 2), save(1, 1), undone(), save(0, 0), undone(),
            )
        };
        let (saved, ()) = tokio::join!(biased; batch, async { drop(held) });
        let mut first = [saved.0, saved.2, saved.5];
        first.sort_unstable_by_key(|(version, _)| *version);
        assert_eq!(first.each_ref().map(|(version, _)| *version), [1, 2, 3]);
        assert_eq!(saved.3.0, 1);
        assert_eq!(save(0, 1).await.0, if first[2].1 == json!(1) { 3 } else { 4 });
        let kept = session(&world, &ana).await["answers"].clone();
        assert_eq!(kept, json!([1, 1]));
        // Its journal has every answer that was acknowledged, and nothing else.
        assert_eq!(findings(&world).await, [""; 0]);
        complete(&world, &ana).await.unwrap();
        assert_eq!(findings(&world).await, [""; 0]);
    }
}

/// On `PostgreSQL` nobody waits for an answer, so what it was judged by may change before it is
/// written. On `SQLite` the one is judged by what the other has written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_not_added_to_an_attempt_that_has_changed_since_it_was_read() {
    for world in World::each().await.into_iter().filter(|world| !world.is_sqlite()) {
        provide(&world, json!({})).await;
        let ana = caller("t", "ana");
        session(&world, &ana).await;
        answer(&world, &ana, 0, json!(1)).await.unwrap();
        let judged = async |at, value: i64| {
            let command =
                ExamAnswer { exam_id: exam_id(), question_index: at, answer: json!(value) };
            let mut cx = Cx::new(&world.app, &ana, Scope::Sitting, world.app.clock.now());
            command.handle(&mut cx).await.unwrap();
            cx
        };
        let (first, second, other) = (judged(0, 2).await, judged(0, 3).await, judged(1, 3).await);
        second.commit().await.unwrap();
        for late in [first, other] {
            assert!(matches!(late.commit().await, Err(Refusal::Outdated)));
        }
        assert_eq!(session(&world, &ana).await["answers"], json!([3]));
        let late = judged(0, 2).await;
        complete(&world, &ana).await.unwrap();
        assert!(matches!(late.commit().await, Err(Refusal::Outdated)));
        assert_eq!(session(&world, &ana).await["answers"], json!([3]));
        assert_eq!(findings(&world).await, [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_waits_for_who_holds_its_attempt_and_nobody_elses_does() {
    for world in World::each().await.into_iter().filter(|world| !world.is_sqlite()) {
        provide(&world, json!({})).await;
        let (ana, ben) = (caller("t", "ana"), caller("t", "ben"));
        for who in [&ana, &ben] {
            session(&world, who).await;
        }
        let mut holder = world.store.begin(&tenant("t"), Scope::Rows).await.unwrap();
        holder.lock_newest_attempt(&tenant("t"), &exam_id(), &ana.user).await.unwrap();
        let waits = answer(&world, &ana, 0, json!(1));
        let others = async {
            for value in 0..4 {
                answer(&world, &ben, 0, json!(value)).await.unwrap();
            }
            drop(holder);
        };
        let (saved, ()) = tokio::join!(biased; waits, others);
        assert_eq!(saved.unwrap()["version"], 1);
        assert_eq!(findings(&world).await, [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_changes_only_what_its_connection_knows() {
    for world in World::each().await {
        provide(&world, json!({})).await;
        let (old, new) = (caller("t", "ana"), caller("t", "ana"));
        session(&world, &old).await;
        answer(&world, &old, 0, json!(1)).await.unwrap();
        session(&world, &new).await;
        answer(&world, &new, 0, json!(2)).await.unwrap();
        answer(&world, &new, 1, json!(3)).await.unwrap();

        // The old tab knows version 1 of the first answer and nothing of the second.
        let saved = snapshot(&world, &old, json!([1, 0, 3])).await.unwrap();
        let not_taken = json!([
            { "questionIndex": 0, "answer": 2, "version": 2 },
            { "questionIndex": 1, "answer": 3, "version": 1 },
        ]);
        assert_eq!(saved["notTaken"], not_taken);
        assert!(saved["timeRemaining"].as_i64().unwrap() <= 600, "the server's, not 1e9");
        assert_eq!(session(&world, &old).await["answers"], json!([2, 3, 3]));
        // Told now, it may change them; null and what is not mentioned stay.
        let saved = snapshot(&world, &old, json!([1, null])).await.unwrap();
        assert_eq!(saved.get("notTaken"), None);
        assert_eq!(session(&world, &old).await["answers"], json!([1, 3, 3]));
        // An answer by itself always counts, and null takes it back.
        answer(&world, &new, 0, Value::Null).await.unwrap();
        assert_eq!(session(&world, &old).await["answers"], json!([null, 3, 3]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_in_the_paper_is_refused_and_nothing_is_stored() {
    for world in World::each().await {
        provide(&world, json!({})).await;
        let ana = caller("t", "ana");
        assert!(matches!(answer(&world, &ana, 0, json!(1)).await, Err(Refusal::NotFound)));
        session(&world, &ana).await;
        let code = |refused: Result<Value, Refusal>| refused.unwrap_err().code().as_str();
        assert_eq!(code(answer(&world, &ana, 10, json!(1)).await), "UNKNOWN_QUESTION");
        assert_eq!(code(answer(&world, &ana, 0, json!(4)).await), "INVALID");
        assert_eq!(code(answer(&world, &ana, 0, json!("1")).await), "INVALID");
        assert_eq!(code(snapshot(&world, &ana, json!([1, 1.5])).await), "INVALID");
        let too_long: Vec<i32> = vec![1; 11];
        assert_eq!(code(snapshot(&world, &ana, json!(too_long)).await), "UNKNOWN_QUESTION");
        assert_eq!(session(&world, &ana).await["answers"], json!([]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_many_complete_it_there_is_one_result() {
    for world in World::each().await {
        provide(&world, json!({})).await;
        let world = Arc::new(world);
        let ana = caller("t", "ana");
        session(&world, &ana).await;
        for at in 0..7 {
            answer(&world, &ana, at, json!(2)).await.unwrap();
        }
        answer(&world, &ana, 7, json!(0)).await.unwrap();
        // Tabs, the teacher and the deadline, all at once.
        control(&world, Action::Submit, None).await.unwrap();
        world.advance(Duration::from_hours(1));
        let mut ends: Vec<_> = (0..10)
            .map(|_| {
                let world = world.clone();
                tokio::spawn(
                    async move { complete(&world, &caller("t", "ana")).await.unwrap().effects },
                )
            })
            .collect();
        for _ in 0..10 {
            let world = world.clone();
            ends.push(tokio::spawn(async move { finish_all(&world).await }));
        }
        let mut effects = Vec::new();
        for end in ends {
            effects.extend(end.await.unwrap());
        }
        let told = |effect: &&Effect| match effect {
            Effect::Emit(emit) => emit.row.name == "exam-completed" && emit.to != Address::Caller,
            _ => false,
        };
        assert_eq!(effects.iter().filter(told).count(), 1);
        assert_eq!(events(&effects, "participant-completed-exam").len(), 1);
        let result = event(&complete(&world, &ana).await.unwrap(), "exam-completed").unwrap();
        let result = &result["result"];
        assert_eq!((&result["score"], &result["total_questions"]), (&json!(7), &json!(10)));
        assert_eq!((&result["points"], &result["max_points"]), (&json!(10.5), &json!(15)));
        assert_eq!(result["answers"], json!([2, 2, 2, 2, 2, 2, 2, 0]));
        let mut reads = world.store.read().await.unwrap();
        let now = world.app.clock.now();
        let unread = reads.unread_notifications(&tenant("t"), &ana.user, now).await.unwrap();
        assert_eq!(unread, 1);
        let stored = reads.results(&tenant("t"), &exam_id(), None, None, 10).await.unwrap();
        assert_eq!(stored.len(), 1);
        assert_eq!(json!(stored[0].id), result["id"]);
        assert_eq!(findings(&world).await, [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_judged_by_when_it_was_received() {
    for world in World::each().await {
        provide(&world, json!({ "durationMinutes": 1 })).await;
        let ana = caller("t", "ana");
        session(&world, &ana).await;
        world.advance(Duration::from_secs(61));
        let saved = answer(&world, &ana, 0, json!(2)).await.unwrap();
        assert_eq!(saved["late"], true, "within the grace");
        world.advance(Duration::from_secs(2));
        let refused = answer(&world, &ana, 1, json!(2)).await.unwrap_err();
        assert!(matches!(refused, Refusal::AttemptClosed(_)));
        let refused = snapshot(&world, &ana, json!([2, 2])).await.unwrap_err();
        assert!(matches!(refused, Refusal::AttemptClosed(_)));
        // Who completes it too late gets the result of the deadline.
        let done = complete(&world, &ana).await.unwrap();
        let result = event(&done, "exam-completed").unwrap()["result"].clone();
        assert_eq!(result["score"], 1);
        let session = session(&world, &ana).await;
        assert_eq!(session["status"], "COMPLETED");
        assert_eq!(session["completed_at"], session["deadline_at"]);
        assert_eq!(result["completed_at"], session["deadline_at"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_attempts_end_at_one_deadline_and_a_poisoned_one_stands_aside() {
    const MANY: usize = 1_000;
    for world in World::each().await {
        provide(&world, json!({ "durationMinutes": 1 })).await;
        let world = Arc::new(world);
        let students = (0..MANY).map(|n| {
            let world = world.clone();
            async move {
                let who = caller("t", &format!("student-{n:04}"));
                session(&world, &who).await;
                answer(&world, &who, n % 10, json!(2)).await.unwrap();
            }
        });
        futures_util::stream::iter(students).buffer_unordered(50).collect::<Vec<()>>().await;
        world
            .sql(
                "UPDATE exam_answers SET answer = '{' WHERE session_id IN
                    (SELECT id FROM exam_sessions WHERE user_id = 'student-0007')",
                "UPDATE exam_answers SET answer = '{' WHERE session_id IN
                    (SELECT id FROM exam_sessions WHERE user_id = 'student-0007')",
            )
            .await;
        world.advance(Duration::from_mins(2));
        let (lease, began) = (world.lease().await, std::time::Instant::now());
        loop {
            let due = finish::due(&world.app, 64).await.unwrap();
            if due.is_empty() {
                break;
            }
            let ids: Vec<_> = due.into_iter().map(|(_, of)| of).collect();
            if finish::finish_due(&world.app, lease, &tenant("t"), &ids).await.is_ok() {
                continue;
            }
            for of in ids {
                let alone =
                    finish::finish_due(&world.app, lease, &tenant("t"), from_ref(&of)).await;
                if alone.is_err() {
                    finish::set_aside(&world.app, lease, &tenant("t"), &of).await.unwrap();
                }
            }
        }
        eprintln!("{} attempts final after {:?}", MANY, began.elapsed());
        let mut reads = world.store.read().await.unwrap();
        let mut after = None;
        let (mut completed, mut others) = (0, Vec::new());
        loop {
            let page =
                reads.attempts(&tenant("t"), &exam_id(), None, after.as_ref(), 200).await.unwrap();
            let Some(last) = page.last() else { break };
            after = Some(last.id.clone());
            for attempt in page {
                match attempt.status {
                    AttemptStatus::Completed => {
                        assert_eq!(attempt.completed_at, attempt.deadline_at);
                        completed += 1;
                    }
                    _ => others.push(attempt.user.to_string()),
                }
            }
        }
        assert_eq!((completed, others), (MANY - 1, vec!["student-0007".to_owned()]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn staff_pause_extend_and_resume_and_the_student_sees_the_new_clock() {
    for world in World::each().await {
        provide(&world, json!({ "durationMinutes": 10 })).await;
        let ana = caller("t", "ana");
        let before = session(&world, &ana).await;
        control(&world, Action::Pause, None).await.unwrap();
        assert!(matches!(answer(&world, &ana, 0, json!(1)).await, Err(Refusal::Paused)));
        assert!(matches!(complete(&world, &ana).await, Err(Refusal::Paused)));
        let paused = session(&world, &ana).await;
        assert_eq!(paused["status"], "PAUSED");
        world.advance(Duration::from_hours(1));
        assert!(finish_all(&world).await.is_empty(), "a paused clock does not run out");
        assert_eq!(session(&world, &ana).await["time_remaining"], paused["time_remaining"]);
        control(&world, Action::Resume, None).await.unwrap();
        control(&world, Action::Extend, Some(120)).await.unwrap();
        let after = session(&world, &ana).await;
        assert_eq!(after["status"], "IN_PROGRESS");
        let left = |session: &Value| session["time_remaining"].as_i64().unwrap();
        assert!((left(&before) + 118..=left(&before) + 120).contains(&left(&after)));
        answer(&world, &ana, 0, json!(2)).await.unwrap();

        let student = caller("t", "eve");
        let command = ExamControl {
            exam_id: exam_id(),
            action: Action::Close,
            user_ids: None,
            seconds: None,
        };
        let refused = world.ask(&student, &command).await.unwrap_err();
        assert!(matches!(refused, Refusal::Forbidden));
        control(&world, Action::Close, None).await.unwrap();
        assert_eq!(events(&finish_all(&world).await, "exam-completed").len(), 1);
        let late = join(&world, &student).await.unwrap_err();
        assert!(matches!(late, Refusal::AttemptClosed(_)));
        assert_eq!(findings(&world).await, [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_the_release_nothing_of_a_key_or_a_score_is_told() {
    for world in World::each().await {
        let secret = json!({ "id": "s", "kind": "short_text", "text": "?", "correct": ["xyzzy"] });
        let changes = json!({ "release": "manual", "questions": [secret] });
        provide(&world, changes).await;
        let ana = caller("t", "ana");
        let joined = join(&world, &ana).await.unwrap();
        answer(&world, &ana, 0, json!("plugh")).await.unwrap();
        let done = complete(&world, &ana).await.unwrap();
        let told: String = [&joined, &done]
            .iter()
            .flat_map(|done| &done.effects)
            .filter_map(|effect| match effect {
                Effect::Emit(emit) => Some(emit.payload.get()),
                _ => None,
            })
            .collect();
        assert!(!told.contains("xyzzy") && !told.contains("scored"), "{told}");
        let result = event(&done, "exam-completed").unwrap()["result"].clone();
        assert_eq!((&result["score"], &result["points"]), (&Value::Null, &Value::Null));

        let mut tx = world.store.begin(&tenant("t"), Scope::Rows).await.unwrap();
        tx.release_exam(&tenant("t"), &exam_id(), world.app.clock.now()).await.unwrap();
        tx.commit().await.unwrap();
        let (lease, mut released) = (world.lease().await, Vec::new());
        for (of, result, due) in results::due(&world.app, lease, 10).await.unwrap() {
            released
                .extend(results::carry_out(&world.app, lease, &of, &result, due).await.unwrap());
        }
        assert_eq!(events(&released, "exam-completed")[0]["result"]["score"], 0);
        assert!(results::due(&world.app, lease, 10).await.unwrap().is_empty());
        assert_eq!(findings(&world).await, [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_key_is_mended_by_a_revision() {
    for world in World::each().await {
        provide(&world, json!({})).await;
        let ana = caller("t", "ana");
        session(&world, &ana).await;
        answer(&world, &ana, 0, json!(3)).await.unwrap();
        complete(&world, &ana).await.unwrap();
        let mut questions = paper();
        questions[0]["correct"] = json!(3);
        provide(&world, json!({ "questions": questions })).await;
        let mut tx = world.store.begin(&tenant("t"), Scope::Lane).await.unwrap();
        let asked = tx.ask_regrade(&tenant("t"), &exam_id(), None, world.app.clock.now()).await;
        assert_eq!(asked.unwrap(), 1);
        tx.commit().await.unwrap();
        let lease = world.lease().await;
        for (of, result, due) in results::due(&world.app, lease, 10).await.unwrap() {
            results::carry_out(&world.app, lease, &of, &result, due).await.unwrap();
        }
        let again = event(&complete(&world, &ana).await.unwrap(), "exam-completed").unwrap();
        let result = &again["result"];
        assert_eq!((&result["score"], &result["revision"]), (&json!(1), &json!(2)));
        assert_eq!(findings(&world).await, [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_changes_removes_or_cuts_off_an_entry_is_found() {
    let tampering = [
        "UPDATE exam_journal SET body = replace(body, '\"answer\":1', '\"answer\":2') WHERE seq = 2",
        "DELETE FROM exam_journal WHERE seq = 2",
        "DELETE FROM exam_journal WHERE seq = (SELECT max(seq) FROM exam_journal)",
        "UPDATE exam_results SET score = 10",
        "UPDATE exam_results SET awards = '{\"q1\":500}'",
        "UPDATE exam_answers SET answer = '2'",
        "UPDATE exam_papers SET questions = replace(questions, '\"correct\":2', '\"correct\":1')",
        "DELETE FROM exam_sessions",
        "UPDATE exam_sessions SET journal_len = journal_len - 1,
            journal_head = (SELECT hash FROM exam_journal WHERE seq = 3)",
        "DELETE FROM exam_results",
    ];
    for statement in tampering {
        for world in World::each().await {
            provide(&world, json!({})).await;
            let ana = caller("t", "ana");
            session(&world, &ana).await;
            answer(&world, &ana, 0, json!(1)).await.unwrap();
            complete(&world, &ana).await.unwrap();
            assert_eq!(findings(&world).await, [""; 0]);
            world.sql(statement, statement).await;
            assert_ne!(findings(&world).await, [""; 0], "{statement}");
        }
    }
}
