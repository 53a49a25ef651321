//! Students who learn together, with a room of their own.

use crate::contract::{EventRow, Namespace, Route};

pub const COMMANDS: &[Route] = &[];
pub const EVENTS: &[EventRow] = &[];

/// On `/`, `/api` and `/study-group`.
#[derive(Debug)]
pub enum StudyGroups {}
impl Namespace for StudyGroups {
    const PATHS: &'static [&'static str] = &["/", "/api", "/study-group"];
}
