//! Enrolment of a fleet as real devices enrol, and the files that keep what they got.
//!
//! ```text
//! run, command -> enrol -> claim (admin API: a claim for up to 10,000 devices of a tenant)
//!                       -> exchange (a thread's device: key, request, TLS with the pinned server, certificate)
//!                       -> file (a line a device, mode 0600) -> identity
//! ```
//!
//! `run --enrol` calls [`enrol`] before it connects anything, `muster-loadtest enrol` calls it alone. A device that is
//! there already gets a new key by a claim that names it, and what it had before is no longer good. One device that
//! gets no certificate ends it all, with the reason. Bounds: [`THREADS`] exchanges at once, `exchange::TRIES_MAX`
//! tries of each; a claim that is left over is deleted.

mod claim;
mod command;
mod exchange;
pub(crate) mod file;

pub(crate) use command::read_bootstrap;
pub use command::{EnrolArgs, run};

use crate::identity::Member;
use crate::observe::http::Client;
use crate::observe::{Access, ServerHandle};
use anyhow::{Context, Result, anyhow};
use claim::{Claim, USES_MAX};
use exchange::{Applicant, Issued};
use file::{Entry, Writer};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Exchanges at once: commits of the registry are shared between them.
const THREADS: usize = 16;

/// Where devices enrol.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    /// The admin API, which makes claims.
    pub(crate) server: &'a ServerHandle,
    /// One a tenant.
    pub(crate) accesses: &'a [Access],
    /// The enrolment listener, where it is another than the claims name.
    pub(crate) listener: Option<&'a str>,
}

/// What an enrolment was.
#[derive(Debug)]
pub(crate) struct Enrolled {
    /// Claims that were made.
    pub(crate) claims: u32,
    /// The authority of the server and of the devices.
    pub(crate) ca_pem: String,
}

/// The tenants of a fleet: one that is there, and others with names of ours.
pub(crate) fn tenant_names(first: &str, count: u16) -> Vec<String> {
    let others = (1..count).map(|number| format!("load-{number:02}"));
    std::iter::once(first.to_owned()).chain(others).collect()
}

/// Gets each member a certificate, and writes the file of their identities in their order. `progress` is told how many
/// are done, from several threads.
///
/// # Errors
/// A claim or an exchange fails, or the file cannot be written; then there is no file.
pub(crate) fn enrol(
    place: Place<'_>,
    members: &[Member],
    file: &Path,
    progress: &(dyn Fn(u32) + Sync),
) -> Result<Enrolled> {
    let out = Mutex::new(Writer::begin(file)?);
    let (claims, shares) = shared_claims(place, members)?;
    let work = Work {
        place,
        members,
        claims: &claims,
        shares: &shares,
        out: &out,
        progress,
        next: AtomicUsize::new(0),
        done: AtomicU32::new(0),
        failed: AtomicBool::new(false),
        named_claims: AtomicU32::new(0),
        ca_pem: OnceLock::new(),
    };
    let parts: Vec<Result<()>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS.min(members.len())).map(|_| scope.spawn(|| work.part())).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked")))
        };
        threads.into_iter().map(join).collect()
    });
    let mut clients = Clients::new(place);
    for (tenant, claim) in &claims {
        let (client, access) = clients.of(*tenant)?;
        claim.delete(client, access);
    }
    parts.into_iter().collect::<Result<()>>()?;
    let made = claims.len() as u32 + work.named_claims.into_inner();
    let ca_pem = work.ca_pem.into_inner().context("there is no device to enrol")?;
    out.into_inner().unwrap_or_else(PoisonError::into_inner).finish()?;
    Ok(Enrolled { claims: made, ca_pem })
}

/// A claim and its tenant's place.
type TenantClaim = (u16, Claim);

/// The claims for all members, as few as may be, each with its tenant; and which one each member spends.
fn shared_claims(place: Place<'_>, members: &[Member]) -> Result<(Vec<TenantClaim>, Vec<usize>)> {
    let (shares, sizes) = shares(members, USES_MAX);
    let mut clients = Clients::new(place);
    let mut claims = Vec::with_capacity(sizes.len());
    for (tenant, uses) in sizes {
        let (client, access) = clients.of(tenant)?;
        claims.push((tenant, Claim::make(client, access, uses, None)?));
    }
    Ok((claims, shares))
}

/// Which claim each member spends, and the tenant and the uses of each claim: none for more than `uses_max`.
fn shares(members: &[Member], uses_max: u32) -> (Vec<usize>, Vec<(u16, u32)>) {
    let mut sizes: Vec<(u16, u32)> = Vec::new();
    let mut open = std::collections::HashMap::new();
    let mut shares = Vec::with_capacity(members.len());
    for member in members {
        let at = open.get(&member.tenant).copied().filter(|at: &usize| sizes[*at].1 < uses_max);
        let at = at.unwrap_or_else(|| {
            sizes.push((member.tenant, 0));
            open.insert(member.tenant, sizes.len() - 1);
            sizes.len() - 1
        });
        sizes[at].1 += 1;
        shares.push(at);
    }
    (shares, sizes)
}

/// What the threads share.
struct Work<'a> {
    place: Place<'a>,
    members: &'a [Member],
    claims: &'a [(u16, Claim)],
    shares: &'a [usize],
    out: &'a Mutex<Writer>,
    progress: &'a (dyn Fn(u32) + Sync),
    next: AtomicUsize,
    done: AtomicU32,
    failed: AtomicBool,
    named_claims: AtomicU32,
    ca_pem: OnceLock<String>,
}

impl Work<'_> {
    /// One thread: the next device until there is none, or one failed.
    fn part(&self) -> Result<()> {
        let mut clients = Clients::new(self.place);
        while !self.failed.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(member) = self.members.get(number) else { break };
            let outcome = self.device(number, member, &mut clients);
            self.failed.fetch_or(outcome.is_err(), Ordering::Relaxed);
            outcome.with_context(|| format!("cannot enrol {}", member.name))?;
            (self.progress)(self.done.fetch_add(1, Ordering::Relaxed) + 1);
        }
        Ok(())
    }

    fn device(&self, number: usize, member: &Member, clients: &mut Clients<'_>) -> Result<()> {
        let tenant = &self.place.accesses[usize::from(member.tenant)].tenant;
        let applicant = Applicant::new(tenant, &member.name)?;
        let (_, claim) = &self.claims[self.shares[number]];
        let issued = match applicant.apply(claim, self.place.listener) {
            Err(error) if error.is_taken() => self.again(member, &applicant, clients)?,
            other => other?,
        };
        let Issued { certificate_pem, key_pem, ca_pem } = issued;
        let _ = self.ca_pem.set(ca_pem);
        let entry = Entry::certified(tenant, &member.name, certificate_pem, key_pem);
        self.out.lock().unwrap_or_else(PoisonError::into_inner).put(number, &entry)
    }

    /// A device that is there already: only a claim that names it gives it another key.
    fn again(&self, member: &Member, applicant: &Applicant<'_>, clients: &mut Clients<'_>) -> Result<Issued> {
        let (client, access) = clients.of(member.tenant)?;
        let claim = Claim::make(client, access, 1, Some(&member.name))?;
        self.named_claims.fetch_add(1, Ordering::Relaxed);
        let issued = applicant.apply(&claim, self.place.listener);
        if issued.is_err() {
            claim.delete(client, access);
        }
        Ok(issued?)
    }
}

/// A thread's connections to the admin API, one a tenant.
struct Clients<'a> {
    place: Place<'a>,
    open: Vec<Option<Client>>,
}

impl<'a> Clients<'a> {
    fn new(place: Place<'a>) -> Self {
        Self { place, open: place.accesses.iter().map(|_| None).collect() }
    }

    fn of(&mut self, tenant: u16) -> Result<(&mut Client, &'a Access)> {
        let access = self.place.accesses.get(usize::from(tenant)).context("a device of no tenant")?;
        let client =
            self.open[usize::from(tenant)].get_or_insert_with(|| Client::of(self.place.server, access));
        Ok((client, access))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_shared_by_as_many_devices_as_it_may() {
        let tenants = [0, 1, 0, 0, 1, 0, 0];
        let member = |tenant| Member { tenant, name: "d".to_owned(), token: None };
        let members: Vec<Member> = tenants.into_iter().map(member).collect();
        let (spent, sizes) = shares(&members, 2);
        assert_eq!(spent, [0, 1, 0, 2, 1, 2, 3]);
        assert_eq!(sizes, [(0, 2), (1, 2), (0, 2), (0, 1)]);
        assert_eq!(shares(&members, USES_MAX).1, [(0, 5), (1, 2)]);
        let many = vec![members[0].clone(); USES_MAX as usize + 1];
        assert_eq!(shares(&many, USES_MAX).1, [(0, USES_MAX), (0, 1)]);
    }

    #[test]
    fn tenants_have_distinct_names() {
        assert_eq!(tenant_names("default", 3), ["default", "load-01", "load-02"]);
    }
}
