//! Notifications. They were shown where they come from, so nothing is delivered again.

use std::sync::Arc;

use carillon_domain::{
    UserId,
    chat::text,
    contract::Scope,
    ids::NotificationId,
    notification::{Notification, Priority},
};
use serde_json::value::RawValue;

use super::{
    Import, ImportError, Mends, Table, instant,
    source::NotificationRow,
    target::{self, Target},
};

const MAX_KIND: usize = 50;
const MAX_TITLE: usize = 255;
const MAX_MESSAGE: usize = 4_000;
const MAX_DATA_BYTES: usize = 8 * 1024;

impl Import<'_> {
    pub(super) async fn notifications(&mut self) -> Result<Table, ImportError> {
        let mut table = self.start("notifications").await?;
        let mut rows: Vec<NotificationRow> = Vec::new();
        loop {
            rows = self.source.notifications(rows.last()).await?;
            if rows.is_empty() {
                return Ok(table);
            }
            let pairs = rows.iter().map(|row| (row.user_id.as_deref(), row.id.as_str()));
            let known = self.target.known(&target::NOTIFICATIONS, pairs).await?;
            let mut tx = self.target.begin(Scope::Rows).await?;
            for row in &rows {
                if known.contains(&row.id) {
                    table.keep();
                    continue;
                }
                match self.notification(row) {
                    Ok((new, mends)) => {
                        let is_new = match &mut tx {
                            Some(tx) => tx.import_notification(self.target.tenant, &new).await?,
                            None => true,
                        };
                        if is_new {
                            table.import(&row.id, mends);
                        } else {
                            table.keep();
                        }
                    }
                    Err(reason) => table.skip(&row.id, reason),
                }
            }
            Target::commit(tx).await?;
            self.told(&table);
        }
    }

    fn notification(&self, row: &NotificationRow) -> Result<(Notification, Mends), &'static str> {
        let mut mends = Mends::default();
        let user = row.user_id.as_deref().filter(|user| self.users.contains_key(*user));
        let user = user.ok_or("the user does not exist, or was skipped")?;
        let mut plain = |text: Option<&String>, max: usize| {
            let text = mends.cut(text?.clone(), max, "a text was cut short");
            text::plain("text", &text, max).ok()
        };
        let kind = plain(row.kind.as_ref(), MAX_KIND);
        let title = plain(row.title.as_ref(), MAX_TITLE);
        let message = plain(row.message.as_ref(), MAX_MESSAGE);
        let (title, message) = match (title, message) {
            (None, None) => return Err("nothing to show"),
            (Some(title), Some(message)) => (title, message),
            (title, message) => {
                mends.note("without a title or a message: the one is also the other");
                let one = title.or(message).unwrap_or_default();
                (one.chars().take(MAX_TITLE).collect(), one)
            }
        };
        let data = row.data.clone().filter(|data| {
            if data.len() > MAX_DATA_BYTES {
                mends.note("data of more than 8 KiB: left out");
            }
            data.len() <= MAX_DATA_BYTES
        });
        let new = Notification {
            id: NotificationId::new(&row.id).map_err(|_| "the id is none")?,
            user_id: UserId::new(user).map_err(|_| "the user's id is none")?,
            kind: kind.unwrap_or_else(|| {
                mends.note("without a type: SYSTEM");
                "SYSTEM".into()
            }),
            title,
            message,
            data: data.and_then(|data| RawValue::from_string(data).ok()).map(Arc::from),
            is_read: row.is_read.unwrap_or(false),
            priority: row.priority.as_deref().and_then(Priority::parse).unwrap_or_else(|| {
                mends.note("an unknown priority: normal");
                Priority::Normal
            }),
            action_url: mends.link(row.action_url.clone(), "an action that is no link: left out"),
            created_at: instant(row.created_at).unwrap_or_else(|| {
                mends.note("without a date: the time of the import");
                self.clock.now()
            }),
            count: None,
        };
        Ok((new, mends))
    }
}
