//! Exams, papers, attempts, answers, journals and results.

use async_trait::async_trait;

#[async_trait]
pub trait ExamReads: Send {}

#[async_trait]
pub trait ExamWrites: Send {}
