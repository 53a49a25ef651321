//! Exams with their papers.

use carillon_domain::{
    Refusal, Timestamp,
    contract::Scope,
    exam::{
        Exam, Release,
        paper::{Kind, Paper, Points, QuestionInput},
    },
    ids::{ExamId, QuestionId},
    ports::{ExamReads as _, ExamWrites as _},
};
use serde_json::Value;

use super::{
    Import, ImportError, Mends, Table, instant,
    source::{ExamRow, QuestionRow},
    target::Target,
};

const MAX_TITLE: usize = 255;
/// A week; longer exams are windows.
const MAX_MINUTES: f64 = 7.0 * 24.0 * 60.0;

/// The questions of an exam that can be asked.
pub(super) struct Questions {
    pub paper: Paper,
    pub json: String,
    /// Where each question of the source is in the paper.
    pub places: Vec<Option<usize>>,
    mends: Vec<(String, Mends)>,
    skipped: Vec<(String, String)>,
}

impl Questions {
    pub fn new(rows: &[QuestionRow]) -> Result<Self, Refusal> {
        let (mut inputs, mut places) = (Vec::new(), Vec::new());
        let (mut all_mends, mut skipped) = (Vec::new(), Vec::new());
        for row in rows {
            match question(row) {
                Ok((input, mends)) => {
                    places.push(Some(inputs.len()));
                    inputs.push(input);
                    all_mends.push((row.id.clone(), mends));
                }
                Err(reason) => {
                    places.push(None);
                    skipped.push((row.id.clone(), reason));
                }
            }
        }
        let paper = Paper::new(&inputs)?;
        let json = paper.to_json()?;
        Ok(Self { paper, json, places, mends: all_mends, skipped })
    }
}

fn question(row: &QuestionRow) -> Result<(QuestionInput, Mends), String> {
    let mut mends = Mends::default();
    let options: Option<Vec<Option<String>>> =
        row.options.as_deref().and_then(|json| serde_json::from_str(json).ok());
    let options = options.unwrap_or_default().into_iter().map(|option| {
        option.filter(|option| !option.trim().is_empty()).unwrap_or_else(|| {
            mends.note("an empty option: shown as –");
            "–".into()
        })
    });
    let options = options.collect();
    let points = row.points.and_then(Points::new).filter(|points| *points >= Points(0));
    let input = QuestionInput {
        id: Some(QuestionId::new(&row.id).map_err(|_| "the id is none")?),
        kind: Kind::SingleChoice,
        text: row.text.clone().unwrap_or_default(),
        options: Some(options),
        correct: row.correct_answer_index.map(Value::from),
        points: Some(points.unwrap_or_else(|| {
            mends.note("unknown points: 1");
            Points(100)
        })),
        scoring: None,
        tolerance: None,
        case_sensitive: None,
    };
    match Paper::new(std::slice::from_ref(&input)) {
        Ok(_) => Ok((input, mends)),
        Err(refusal) => Err(refusal.to_string().replace("questions[0].", "")),
    }
}

impl Import<'_> {
    pub(super) async fn exams(&mut self) -> Result<[Table; 2], ImportError> {
        let total = self.source.count("questions").await?;
        let mut questions = Table::new("questions");
        let mut exams = self.start("exams").await?;
        let mut rows: Vec<ExamRow> = Vec::new();
        loop {
            rows = self.source.exams(rows.last()).await?;
            if rows.is_empty() {
                break;
            }
            let mut tx = self.target.begin(Scope::Rows).await?;
            for row in &rows {
                let asked = self.source.questions(&row.id).await?;
                let skip_all = |exams: &mut Table, questions: &mut Table, reason: String| {
                    exams.skip(&row.id, reason);
                    for question in &asked {
                        questions.skip(&question.id, "the exam was skipped");
                    }
                };
                let papers = match Questions::new(&asked) {
                    Ok(of) if !of.paper.questions.is_empty() => of,
                    Ok(_) if asked.is_empty() => {
                        skip_all(&mut exams, &mut questions, "without questions".into());
                        continue;
                    }
                    Ok(_) => {
                        let reason = "none of the questions can be asked";
                        skip_all(&mut exams, &mut questions, reason.into());
                        continue;
                    }
                    Err(refusal) => {
                        skip_all(&mut exams, &mut questions, refusal.to_string());
                        continue;
                    }
                };
                let (exam, mends) = match self.exam(row) {
                    Ok(fitting) => fitting,
                    Err(reason) => {
                        skip_all(&mut exams, &mut questions, reason.into());
                        continue;
                    }
                };
                self.exams.insert(row.id.clone());
                let stored = self.target.papers(&exam.id).await?;
                for (id, reason) in papers.skipped {
                    questions.skip(&id, reason);
                }
                if stored.iter().any(|(_, json)| *json == papers.json) {
                    exams.keep();
                    papers.mends.iter().for_each(|_| questions.keep());
                    continue;
                }
                let newest = stored.first().map_or(0, |(version, _)| *version);
                if let Some(tx) = &mut tx {
                    let tenant = self.target.tenant;
                    // Whatever else was set here stays as it is.
                    let exam = match tx.exam(tenant, &exam.id).await? {
                        Some(here) => Exam { paper_version: newest + 1, ..here },
                        None => exam,
                    };
                    tx.save_exam(tenant, &exam).await?;
                    let (version, now) = (exam.paper_version, self.clock.now());
                    tx.insert_paper(tenant, &exam.id, version, &papers.json, now).await?;
                }
                exams.import(&row.id, mends);
                if newest > 0 {
                    exams.mended.add("already there with other questions: a new version", &row.id);
                }
                for (id, mends) in papers.mends {
                    questions.import(&id, mends);
                }
            }
            Target::commit(tx).await?;
            self.told(&exams);
        }
        for id in self.source.lost_questions().await? {
            questions.skip(&id, "the exam does not exist");
        }
        self.total = total;
        self.told(&questions);
        Ok([exams, questions])
    }

    fn exam(&self, row: &ExamRow) -> Result<(Exam, Mends), &'static str> {
        let mut mends = Mends::default();
        let id = ExamId::new(&row.id).map_err(|_| "the id is none")?;
        let topic = mends.cut_option(row.topic.clone(), MAX_TITLE, "the topic was cut short");
        let title = row.title.as_deref().map(str::trim).filter(|title| !title.is_empty());
        let title = title.map_or_else(
            || {
                mends.note("without a title: called by the topic, or by the id");
                topic.clone().unwrap_or_else(|| row.id.clone())
            },
            str::to_owned,
        );
        let closes_at = instant(row.scheduled_end);
        let mut opens_at = instant(row.scheduled_start);
        if opens_at.zip(closes_at).is_some_and(|(opens, closes)| closes <= opens) {
            mends.note("it closes before it opens: only the end was kept");
            opens_at = None;
        }
        let (now, minutes) = (self.clock.now(), row.duration_minutes.filter(|of| *of != 0.0));
        #[expect(clippy::cast_possible_truncation, reason = "at most a week")]
        let duration_ms = minutes
            .filter(|minutes| (0.0..=MAX_MINUTES).contains(minutes))
            .map(|minutes| (minutes * 60_000.0).round() as i64);
        if minutes.is_some() && duration_ms.is_none() {
            mends.note("a duration of less than nothing or more than a week: none");
        }
        let created_at: Timestamp = instant(row.created_at).unwrap_or_else(|| {
            mends.note("without a date: the time of the import");
            now
        });
        let exam = Exam {
            id,
            title: mends.cut(title, MAX_TITLE, "the title was cut short"),
            topic,
            duration_ms,
            opens_at,
            closes_at,
            attempts_allowed: 1,
            shuffle: false,
            release: Release::Immediately,
            shows_scores: false,
            for_everyone: true,
            by_any_staff: true,
            paper_version: 1,
            closed_at: None,
            released_at: None,
            created_at,
            updated_at: now,
        };
        Ok((exam, mends))
    }
}
