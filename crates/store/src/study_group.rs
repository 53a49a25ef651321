//! Study groups, their members and invitations.

use async_trait::async_trait;
use carillon_domain::ports::{StudyGroupReads, StudyGroupWrites};

use crate::tx::SqlTx;

#[async_trait]
impl StudyGroupReads for SqlTx {}

#[async_trait]
impl StudyGroupWrites for SqlTx {}
