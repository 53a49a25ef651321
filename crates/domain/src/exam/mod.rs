//! Papers, attempts, deadlines and results.

use crate::contract::{EventRow, Namespace, Route};

pub const COMMANDS: &[Route] = &[];
pub const EVENTS: &[EventRow] = &[];

/// On `/`, `/api` and `/exam`.
#[derive(Debug)]
pub enum Exams {}
impl Namespace for Exams {
    const PATHS: &'static [&'static str] = &["/", "/api", "/exam"];
}
