//! Study groups. What became of a group here is not undone: one that is there is left alone.

use carillon_domain::{
    RoomId, UserId, chat::text, contract::Scope, ids::GroupId, study_group::StudyGroup,
};

use super::{
    Import, ImportError, Mends, Table, instant,
    source::{self, GroupRow},
    target::{self, Target},
};

const MAX_NAME: usize = 255;
const MAX_DESCRIPTION: usize = 2_000;
const MAX_SPECIALTY: usize = 100;
const MAX_MEMBERS: usize = 500;

impl Import<'_> {
    pub(super) async fn groups(&mut self) -> Result<Table, ImportError> {
        let mut table = self.start("study_groups").await?;
        let mut rows: Vec<GroupRow> = Vec::new();
        loop {
            rows = self.source.groups(rows.last()).await?;
            if rows.is_empty() {
                return Ok(table);
            }
            let ids = rows.iter().map(|row| &row.id);
            let known = self.target.known(&target::GROUPS, ids).await?;
            let rooms = rows.iter().filter_map(|row| row.room_id.as_ref());
            let taken = self.target.known(&target::GROUP_ROOMS, rooms).await?;
            let mut tx = self.target.begin(Scope::Lane).await?;
            for row in &rows {
                if known.contains(&row.id) {
                    table.keep();
                    continue;
                }
                let (group, mends) = match self.group(row) {
                    Ok(fitting) => fitting,
                    Err(reason) => {
                        table.skip(&row.id, reason);
                        continue;
                    }
                };
                let is_new = match &mut tx {
                    _ if taken.contains(group.room_id.as_str()) => false,
                    Some(tx) => tx.import_group(self.target.tenant, &group).await?,
                    None => true,
                };
                if is_new {
                    self.rooms.insert(group.room_id.as_str().to_owned());
                    table.import(&row.id, mends);
                } else {
                    table.skip(&row.id, "another group has its room");
                }
            }
            Target::commit(tx).await?;
            self.told(&table);
        }
    }

    fn group(&self, row: &GroupRow) -> Result<(StudyGroup, Mends), &'static str> {
        let mut mends = Mends::default();
        let id = GroupId::new(&row.id).map_err(|_| "the id is none")?;
        let room = row.room_id.as_deref().and_then(|room| RoomId::new(room).ok());
        let room_id = room
            .filter(RoomId::is_study_group)
            .ok_or("the room is not named study-group:…, with at most 128 characters")?;
        let (mut members, missing) = source::ids(row.members.as_deref());
        let given = members.len();
        members.retain(|member| self.users.contains_key(member));
        if missing > 0 || members.len() < given {
            mends.note("members who do not exist, or twice: left out");
        }
        if members.len() > MAX_MEMBERS {
            return Err("more than 500 members");
        }
        let members: Vec<UserId> =
            members.iter().filter_map(|member| UserId::new(member).ok()).collect();
        let first = members.first().ok_or("nobody is in it")?;
        let creator = row.creator_id.as_deref().and_then(|creator| UserId::new(creator).ok());
        let owner_id = match &creator {
            Some(creator) if members.contains(creator) => creator.clone(),
            _ => {
                mends.note("the creator is not in it: the first member owns it");
                first.clone()
            }
        };
        let seats = i64::try_from(members.len()).unwrap_or(i64::MAX).max(2);
        let max_members = row.max_members.unwrap_or(10);
        let fitting = max_members.clamp(seats, 500);
        if fitting != max_members {
            mends.note("fewer seats than members or two, or more than 500: as many as needed");
        }
        let now = self.clock.now();
        let name = mends.cut_option(row.name.clone(), MAX_NAME, "the name was cut short");
        let name = name.and_then(|name| text::plain("name", &name, MAX_NAME).ok());
        let description = row.description.clone();
        let description = mends.cut_option(description, MAX_DESCRIPTION, "a text was cut short");
        let specialty =
            mends.cut_option(row.specialty.clone(), MAX_SPECIALTY, "a text was cut short");
        let group = StudyGroup {
            id,
            name: name.unwrap_or_else(|| {
                mends.note("without a name: Study group");
                "Study group".into()
            }),
            description: text::plain_option("description", description, MAX_DESCRIPTION)
                .unwrap_or_default(),
            room_id,
            creator_id: creator.unwrap_or_else(|| owner_id.clone()),
            members,
            max_members: fitting,
            specialty: text::plain_option("specialty", specialty, MAX_SPECIALTY)
                .unwrap_or_default(),
            is_public: row.is_public.unwrap_or(true),
            created_at: instant(row.created_at).unwrap_or_else(|| {
                mends.note("without a date: the time of the import");
                now
            }),
            updated_at: now,
            owner_id,
        };
        Ok((group, mends))
    }
}
