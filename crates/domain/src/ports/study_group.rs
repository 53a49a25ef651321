//! Study groups, their members and invitations.

use async_trait::async_trait;

#[async_trait]
pub trait StudyGroupReads: Send {}

#[async_trait]
pub trait StudyGroupWrites: Send {}
