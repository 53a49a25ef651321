//! Users. Passwords stay where they are: nobody signs in here.

use carillon_domain::{
    UserId,
    contract::Scope,
    identity::{Account, Role, TokenRule, UserStatus},
};

use super::{Import, ImportError, Mends, Table, instant, source::UserRow, target};

const MAX_NAME: usize = 200;
const MAX_EMAIL: usize = 320;
const MAX_SPECIALTY: usize = 100;

impl Import<'_> {
    pub(super) async fn users(&mut self) -> Result<Table, ImportError> {
        let mut table = self.start("users").await?;
        let mut rows: Vec<UserRow> = Vec::new();
        loop {
            rows = self.source.users(rows.last()).await?;
            if rows.is_empty() {
                return Ok(table);
            }
            let ids = rows.iter().map(|row| &row.id);
            let known = self.target.known(&target::USERS, ids).await?;
            let mut tx = self.target.begin(Scope::Rows).await?;
            for row in &rows {
                let (account, mends) = match self.account(row) {
                    Ok(fitting) => fitting,
                    Err(reason) => {
                        table.skip(&row.id, reason);
                        continue;
                    }
                };
                self.users.insert(row.id.clone(), account.name.clone());
                let is_new = match &mut tx {
                    _ if known.contains(&row.id) => false,
                    Some(tx) => tx.import_user(self.target.tenant, &account).await?,
                    None => true,
                };
                if is_new {
                    table.import(&row.id, mends);
                } else {
                    table.keep();
                }
            }
            target::Target::commit(tx).await?;
            self.told(&table);
        }
    }

    fn account(&self, row: &UserRow) -> Result<(Account, Mends), &'static str> {
        let mut mends = Mends::default();
        let id = UserId::new(&row.id).map_err(|_| "the id is none")?;
        if id.is_reserved() {
            return Err("the id begins with a space or with \"api:\"");
        }
        let email =
            mends.cut_option(row.email.clone(), MAX_EMAIL, "the e-mail address was cut short");
        let name = row.name.as_deref().map(str::trim).filter(|name| !name.is_empty());
        let name = name.unwrap_or_else(|| {
            mends.note("without a name: called by the e-mail address, or by the id");
            let local = email.as_deref().and_then(|email| email.split('@').next());
            local.map(str::trim).filter(|local| !local.is_empty()).unwrap_or(&row.id)
        });
        let now = self.clock.now();
        let account = Account {
            id,
            name: mends.cut(name.to_owned(), MAX_NAME, "the name was cut short"),
            email,
            role: row.role.as_deref().and_then(Role::parse).unwrap_or_else(|| {
                mends.note("an unknown role: STUDENT");
                Role::Student
            }),
            avatar: mends.link(row.avatar.clone(), "an avatar that is no link: without"),
            target_specialty: mends.cut_option(
                row.target_specialty.clone(),
                MAX_SPECIALTY,
                "the specialty was cut short",
            ),
            status: row.status.as_deref().and_then(UserStatus::parse).unwrap_or_else(|| {
                mends.note("an unknown status: PENDING");
                UserStatus::Pending
            }),
            managed: true,
            tokens: TokenRule::default(),
            created_at: instant(row.created_at).unwrap_or_else(|| {
                mends.note("without a date: the time of the import");
                now
            }),
            updated_at: now,
        };
        Ok((account, mends))
    }
}
