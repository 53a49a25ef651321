//! API keys, idempotency keys and the audit log.

use async_trait::async_trait;
use carillon_domain::ports::{ApiReads, ApiWrites};

use crate::tx::SqlTx;

#[async_trait]
impl ApiReads for SqlTx {}

#[async_trait]
impl ApiWrites for SqlTx {}
