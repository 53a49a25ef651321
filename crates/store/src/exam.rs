//! Exams, papers, attempts, answers, journals and results.

use async_trait::async_trait;
use carillon_domain::ports::{ExamReads, ExamWrites};

use crate::tx::SqlTx;

#[async_trait]
impl ExamReads for SqlTx {}

#[async_trait]
impl ExamWrites for SqlTx {}
