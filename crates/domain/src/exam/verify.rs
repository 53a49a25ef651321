//! Whether what is stored of an exam is what happened: state and result of every attempt are folded
//! again from its journal, and the journal's codes are made again with the server's key.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    Answer, Attempt, AttemptStatus, ExamResult, answers_in_order,
    grade::{Awards, Marks},
    journal::{Entry, JournalKey, JournalRow},
    paper::{Paper, fingerprint},
};
use crate::{
    ids::{ExamId, TenantId},
    ports::Reads,
    refusal::Refusal,
};

const PAGE: u32 = 200;

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    pub attempts: usize,
    pub entries: usize,
    /// One sentence each; empty when everything fits.
    pub findings: Vec<String>,
}

/// Checks every attempt of an exam.
pub async fn verify(
    reads: &mut dyn Reads,
    key: &JournalKey,
    tenant: &TenantId,
    exam: &ExamId,
) -> Result<Report, Refusal> {
    let mut report = Report::default();
    let mut after = None;
    let mut with_result = 0;
    loop {
        let attempts = reads.attempts(tenant, exam, None, after.as_ref(), PAGE).await?;
        let Some(last) = attempts.last() else { break };
        after = Some(last.id.clone());
        for attempt in &attempts {
            let rows = rows(reads, tenant, attempt).await?;
            let answers = reads.answers(tenant, &attempt.id).await?;
            let result = reads.result_of_attempt(tenant, &attempt.id).await?;
            with_result += usize::from(result.is_some());
            report.attempts += 1;
            report.entries += rows.len();
            let mut check = Check { attempt, findings: Vec::new() };
            let story = check.chain(key, &rows);
            check.state(&story, &answers, result.as_ref());
            check.result(reads, tenant, &story, result.as_ref()).await?;
            report.findings.append(&mut check.findings);
        }
    }
    let mut results = 0;
    let mut after = None;
    loop {
        let page = reads.results(tenant, exam, None, after.as_ref(), PAGE).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.id.clone());
        results += page.len();
    }
    if results != with_result {
        let lost = results.abs_diff(with_result);
        report.findings.push(format!("{lost} results have no attempt"));
    }
    Ok(report)
}

async fn rows(
    reads: &mut dyn Reads,
    tenant: &TenantId,
    attempt: &Attempt,
) -> Result<Vec<JournalRow>, Refusal> {
    let mut rows: Vec<JournalRow> = Vec::new();
    loop {
        let after = rows.last().map_or(0, |row| row.seq);
        let page = reads.journal(tenant, &attempt.id, after, PAGE).await?;
        if page.is_empty() {
            return Ok(rows);
        }
        rows.extend(page);
    }
}

/// What a journal tells, folded.
#[derive(Debug, Default)]
struct Story {
    paper: Option<(i64, String)>,
    student: Option<String>,
    order: Option<Vec<usize>>,
    deadline_at: Option<i64>,
    answers: BTreeMap<usize, (i64, Value)>,
    submitted: Option<(String, i64)>,
    graded: Option<Graded>,
    paused: bool,
    forced: bool,
}

#[derive(Debug)]
struct Graded {
    revision: i64,
    key_version: i64,
    paper: String,
    awards: Awards,
    marks: Marks,
}

struct Check<'a> {
    attempt: &'a Attempt,
    findings: Vec<String>,
}

impl Check<'_> {
    fn find(&mut self, what: &str) {
        let Attempt { id, user, .. } = self.attempt;
        self.findings.push(format!("attempt {id} of {user}: {what}"));
    }

    fn expect(&mut self, holds: bool, otherwise: &str) {
        if !holds {
            self.find(otherwise);
        }
    }

    /// Numbers, codes and ends of the journal; folds what it says on the way.
    fn chain(&mut self, key: &JournalKey, rows: &[JournalRow]) -> Story {
        let (mut story, mut previous) = (Story::default(), "");
        for (row, expected) in rows.iter().zip(1..) {
            if row.seq != expected {
                self.find(&format!("entry {expected} is missing"));
                break;
            }
            if row.code(key, &self.attempt.id, previous) != row.hash {
                self.find(&format!("entry {expected} was changed, or made with another key"));
            }
            previous = &row.hash;
            match serde_json::from_str::<Entry>(&row.body) {
                Ok(entry) if entry.kind() == row.kind => story.fold(entry, &row.actor),
                _ => self.find(&format!("entry {expected} cannot be read")),
            }
        }
        let (length, head) = (self.attempt.journal_len, self.attempt.journal_head.as_str());
        let told = i64::try_from(rows.len()).unwrap_or(i64::MAX);
        if told != length || previous != head {
            self.find(&format!("the journal has {told} entries and should end at entry {length}"));
        }
        story
    }

    fn state(&mut self, story: &Story, answers: &[Answer], result: Option<&ExamResult>) {
        let stored: BTreeMap<usize, (i64, Value)> = answers
            .iter()
            .map(|answer| (answer.question, (answer.version, answer.value.clone())))
            .collect();
        self.expect(stored == story.answers, "the stored answers are not those of the journal");
        let attempt = self.attempt;
        let status = match (&story.submitted, story.paused) {
            (Some(_), _) => AttemptStatus::Completed,
            (None, true) => AttemptStatus::Paused,
            (None, false) => AttemptStatus::InProgress,
        };
        self.expect(attempt.status == status, "the status is not that of the journal");
        let student = Some(attempt.user.as_str().trim());
        let began = story.student.as_deref().map(str::trim);
        self.expect(began == student, "the student is not that of the journal");
        let deadline_at = attempt.deadline_at.map(|at| at.0);
        self.expect(story.deadline_at == deadline_at, "the deadline is not that of the journal");
        self.expect(story.order == attempt.order, "the order is not that of the journal");
        self.expect(
            attempt.forced_at.is_some() == story.forced,
            "it was ended by staff in one place and not in the other",
        );
        let ended = attempt.ended_by.zip(attempt.completed_at);
        let ended = ended.map(|(by, at)| (by.as_str().to_owned(), at.0));
        self.expect(ended == story.submitted, "its end is not that of the journal");
        self.expect(
            story.paper.as_ref().is_some_and(|(version, _)| *version == attempt.paper_version),
            "the paper is not that of the journal",
        );
        if let Some(result) = result {
            let same = (result.journal_len, result.journal_head.as_str())
                == (attempt.journal_len, attempt.journal_head.as_str());
            self.expect(same, "the result does not hold the end of the journal");
            let is_theirs =
                (&result.user, result.attempt_number) == (&attempt.user, attempt.number);
            self.expect(is_theirs, "the result is somebody else's, or of another attempt");
            let answers = answers_in_order(attempt, answers);
            self.expect(result.answers == answers, "the result shows other answers");
            let at = attempt.completed_at;
            self.expect(at == Some(result.completed_at), "the result has another end");
        }
    }

    /// Marks the journal's answers again, and compares.
    async fn result(
        &mut self,
        reads: &mut dyn Reads,
        tenant: &TenantId,
        story: &Story,
        result: Option<&ExamResult>,
    ) -> Result<(), Refusal> {
        let (graded, result) = match (&story.graded, result) {
            (None, None) => return Ok(()),
            (Some(graded), Some(result)) => (graded, result),
            _ => {
                self.find("there is a result without a grading, or the other way round");
                return Ok(());
            }
        };
        self.expect(
            result.marks == graded.marks && result.revision == graded.revision,
            "the result is not that of the journal",
        );
        self.expect(
            result.awards == graded.awards,
            "points given by hand are not those of the journal, or have yet to be counted",
        );
        let begun_with = story.paper.as_ref().map(|(version, of)| (*version, of.as_str()));
        let own = match begun_with {
            Some((version, of)) => self.paper(reads, tenant, version, of).await?,
            None => None,
        };
        let keys = self.paper(reads, tenant, graded.key_version, &graded.paper).await?;
        if let (Some(own), Some(keys)) = (own, keys) {
            let answers =
                story.answers.iter().map(|(place, (_, value))| (*place, value.clone())).collect();
            let marks = own.with_keys_of(&keys).mark(&answers, &graded.awards);
            self.expect(marks == graded.marks, "marked again, it earns something else");
        }
        Ok(())
    }

    async fn paper(
        &mut self,
        reads: &mut dyn Reads,
        tenant: &TenantId,
        version: i64,
        expected: &str,
    ) -> Result<Option<Paper>, Refusal> {
        let json = reads.paper(tenant, &self.attempt.exam, version).await?;
        match json.map(|json| (fingerprint(&json), Paper::from_json(&json))) {
            Some((of, Ok(paper))) if of == expected => Ok(Some(paper)),
            _ => {
                self.find(&format!("version {version} of the paper was changed"));
                Ok(None)
            }
        }
    }
}

impl Story {
    fn fold(&mut self, entry: Entry, actor: &str) {
        match entry {
            Entry::Started { paper_version, paper, order, deadline_at } => {
                self.paper = Some((paper_version, paper));
                self.student = Some(actor.to_owned());
                (self.order, self.deadline_at) = (order, deadline_at);
            }
            Entry::Answered { answers } => {
                for saved in answers {
                    self.answers.insert(saved.question, (saved.version, saved.answer));
                }
            }
            Entry::Paused => self.paused = true,
            Entry::Resumed { deadline_at } => {
                (self.paused, self.deadline_at) = (false, deadline_at);
            }
            Entry::Extended { deadline_at, .. } => self.deadline_at = deadline_at,
            Entry::Forced => self.forced = true,
            Entry::Submitted { by, completed_at } => self.submitted = Some((by, completed_at)),
            Entry::Graded { revision, key_version, paper, awards, marks } => {
                self.graded = Some(Graded { revision, key_version, paper, awards, marks });
            }
        }
    }
}
