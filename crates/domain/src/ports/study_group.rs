//! Study groups, their members and invitations.

use async_trait::async_trait;

use super::Result;
use crate::{
    ids::{GroupId, TenantId, Timestamp, UserId},
    study_group::{Standing, StudyGroup},
};

#[async_trait]
pub trait StudyGroupReads: Send {
    /// The group with its members, unless it is gone.
    async fn study_group(
        &mut self,
        tenant: &TenantId,
        group: &GroupId,
    ) -> Result<Option<StudyGroup>>;
    /// Ids of groups, after one.
    async fn study_group_ids(
        &mut self,
        tenant: &TenantId,
        after: &str,
        limit: u32,
    ) -> Result<Vec<GroupId>>;
    /// The groups a user belongs to, by id.
    async fn groups_of(&mut self, tenant: &TenantId, user: &UserId) -> Result<Vec<GroupId>>;
    /// How a user stands to a group, unless it is gone.
    async fn standing(
        &mut self,
        tenant: &TenantId,
        group: &GroupId,
        user: &UserId,
    ) -> Result<Option<Standing>>;
}

#[async_trait]
pub trait StudyGroupWrites: Send {
    /// Makes the group and its room, without members.
    async fn create_study_group(&mut self, tenant: &TenantId, group: &StudyGroup) -> Result<()>;
    /// Gives the user a place in the group and in its room, and uses up their invitation; false
    /// when there is no place.
    async fn add_group_member(
        &mut self,
        tenant: &TenantId,
        group: &GroupId,
        user: &UserId,
        now: Timestamp,
    ) -> Result<bool>;
    /// Takes the user out of the group and its room; how many are left, or `None` when they were
    /// not in it.
    async fn remove_group_member(
        &mut self,
        tenant: &TenantId,
        group: &GroupId,
        user: &UserId,
        now: Timestamp,
    ) -> Result<Option<i64>>;
    /// Makes the oldest admin the owner, without any the oldest member; `None` when there is
    /// nobody.
    async fn pass_on_study_group(
        &mut self,
        tenant: &TenantId,
        group: &GroupId,
        now: Timestamp,
    ) -> Result<Option<UserId>>;
    /// Marks a group without members as gone.
    async fn delete_study_group(
        &mut self,
        tenant: &TenantId,
        group: &GroupId,
        now: Timestamp,
    ) -> Result<()>;
    /// Lets a user in; false when they were invited already.
    async fn invite_to_group(
        &mut self,
        tenant: &TenantId,
        group: &GroupId,
        user: &UserId,
        by: &UserId,
        now: Timestamp,
    ) -> Result<bool>;
}
