//! API keys, idempotency keys and the audit log.

use async_trait::async_trait;

#[async_trait]
pub trait ApiReads: Send {}

#[async_trait]
pub trait ApiWrites: Send {}
