//! Counts the log's records by tenant and day: pure but for the board that it tells.
//!
//! The consumer hands it every record once, in order, and commits what [`Meter::take`] gives together with its place. A
//! record that the log holds twice (its acknowledgement was lost) was taken twice and is counted twice. Days are those of
//! `received_at`, which never steps back within a log.
//!
//! Limits: one [`Counts`] a tenant and day between two commits, and today's of each tenant.

use super::allowance::Allowance;
use super::board::Board;
use super::model::{Counts, DayRow, Notice, Quota, Quotas, Refused, Used, day_of, levels};
use crate::platform::event_log::{Kind, LogRecord};
use muster_wire::{Event, Telemetry, UpClass, senml};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// What one tenant used.
struct OfTenant {
    allowance: Arc<Allowance>,
    /// The newest day with records.
    day: i64,
    today: Counts,
    /// Not committed yet.
    pending: BTreeMap<i64, Counts>,
    second: i64,
    in_second: u64,
    /// The most messages in a second since the last look.
    peak: u64,
    devices: u64,
    /// What was stored on the days before `day` that are kept.
    stored_before: u64,
    /// The largest that this day's row was told: devices, storage.
    told: (u64, u64),
    noticed: HashSet<(Quota, super::model::Level)>,
    /// Its store was emptied, and it is told nothing.
    is_erased: bool,
}

impl OfTenant {
    fn new(board: &Board, tenant: &str, day: i64) -> Self {
        Self {
            allowance: board.of(tenant),
            day,
            today: Counts::default(),
            pending: BTreeMap::new(),
            second: i64::MIN,
            in_second: 0,
            peak: 0,
            devices: 0,
            stored_before: 0,
            told: (0, 0),
            noticed: HashSet::new(),
            is_erased: false,
        }
    }

    /// A later day begins: what was stored today is stored before it.
    fn turn(&mut self, day: i64) {
        if day > self.day {
            self.stored_before += self.today.stored_bytes();
            (self.day, self.today, self.told) = (day, Counts::default(), (0, 0));
            self.noticed.clear();
        }
    }

    fn count(&mut self, day: i64, more: &Counts) {
        self.turn(day);
        if day == self.day {
            self.today.add(more);
        }
        self.pending.entry(day).or_default().add(more);
    }

    fn count_second(&mut self, second: i64) -> u64 {
        if second != self.second {
            (self.second, self.in_second) = (second, 0);
        }
        self.in_second += 1;
        self.peak = self.peak.max(self.in_second);
        self.in_second
    }

    fn storage_bytes(&self) -> u64 {
        if self.is_erased { 0 } else { self.stored_before + self.today.stored_bytes() }
    }

    fn used(&self, refused: [u64; 13]) -> Used {
        let by = [
            self.peak,
            self.today.messages,
            self.today.bytes,
            self.today.inference_us / 1_000,
            self.storage_bytes(),
            self.devices,
            self.allowance.connections(),
        ];
        Used { by, refused }
    }
}

/// What is to be committed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    /// More of each tenant's days; devices and storage are the day's largest so far.
    pub(super) rows: Vec<DayRow>,
    /// Limits reached for the first time that day.
    pub(super) notices: Vec<Notice>,
}

/// Counts records.
pub(super) struct Meter {
    board: Arc<Board>,
    tenants: HashMap<Box<str>, OfTenant>,
    /// Records below were admitted before this process began: they count against today's quotas.
    own_from: u64,
    day: i64,
    /// With records, since the start or since the clock was set back.
    newest_day: Option<i64>,
}

impl Meter {
    /// A meter that knows nothing yet, on a day; the gateway of this process appends from `own_from` on.
    pub(super) fn new(board: Arc<Board>, own_from: u64, day: i64) -> Self {
        Self { board, tenants: HashMap::new(), own_from, day, newest_day: None }
    }

    fn tenant(&mut self, tenant: &str) -> &mut OfTenant {
        if !self.tenants.contains_key(tenant) {
            let new = OfTenant::new(&self.board, tenant, self.day);
            self.tenants.insert(tenant.into(), new);
        }
        self.tenants.get_mut(tenant).expect("it was put there")
    }

    /// Takes up where a day's row stands.
    pub(super) fn restore(&mut self, row: &DayRow) {
        let board = self.board.clone();
        let of = self.tenant(&row.tenant);
        (of.day, of.today, of.told) = (row.day, row.counts, (row.devices, row.storage_bytes));
        of.devices = row.devices;
        if let Some(more) = of.pending.get(&row.day) {
            of.today.add(more);
        }
        if row.day == board.day() {
            of.allowance.charge(row.counts.messages, row.counts.bytes);
        }
    }

    /// Takes up what was noticed on the meter's day.
    pub(super) fn restore_notice(&mut self, notice: &Notice) {
        self.tenant(&notice.tenant).noticed.insert((notice.quota, notice.level));
    }

    /// Whether it counts a day so far ahead that the clock must have been wrong.
    pub(super) fn is_ahead(&self, day: i64) -> bool {
        self.day > day.saturating_add(1)
    }

    /// Goes back to an earlier day, whose rows are to be restored next.
    pub(super) fn set_back(&mut self, day: i64) {
        (self.day, self.newest_day) = (day, None);
        for of in self.tenants.values_mut() {
            let today = of.pending.get(&day).copied().unwrap_or_default();
            (of.day, of.today, of.told) = (day, today, (0, 0));
            of.noticed.clear();
        }
    }

    /// The newest day with records.
    pub(super) fn newest_day(&self) -> Option<i64> {
        self.newest_day
    }

    /// Who is being or was erased.
    pub(super) fn set_erased(&mut self, erased: &HashSet<String>) {
        self.tenants.iter_mut().for_each(|(tenant, of)| of.is_erased = erased.contains(&**tenant));
    }

    /// What each tenant stored on the kept days before this one.
    pub(super) fn set_stored_before(&mut self, day: i64, stored: &HashMap<String, u64>) {
        for (tenant, of) in &mut self.tenants {
            of.turn(day);
            of.stored_before = stored.get(&**tenant).copied().unwrap_or(0);
        }
        for (tenant, bytes) in stored {
            let of = self.tenant(tenant);
            of.turn(day);
            of.stored_before = *bytes;
        }
    }

    /// How many devices each tenant has now; whoever is not named has none.
    pub(super) fn set_devices(&mut self, counts: &[(String, u64)]) {
        self.tenants.values_mut().for_each(|of| of.devices = 0);
        for (tenant, devices) in counts {
            self.tenant(tenant).devices = *devices;
        }
    }

    /// Counts a record, on a day by the clock.
    pub(super) fn observe(&mut self, record: &LogRecord<'_>, today: i64) {
        let mut counts = Counts::default();
        match record.kind {
            Kind::Message => count_message(record, &mut counts),
            Kind::Rejected { reason } => counts.refused[Refused::of_code(reason) as usize] = 1,
            Kind::Tick | Kind::Connected | Kind::Disconnected { .. } => return,
        }
        let (stamped, is_before) = (day_of(record.received_at_us), record.position < self.own_from);
        // Within a day the two may differ: the clock went on, or back by little.
        let day = if stamped > today.saturating_add(1) { today } else { stamped };
        (self.day, self.newest_day) = (self.day.max(day), self.newest_day.max(Some(day)));
        let kept_bytes =
            if matches!(record.kind, Kind::Rejected { .. }) { record.body.len() as u64 } else { 0 };
        let board_day = self.board.day();
        let of = self.tenant(record.tenant);
        if counts.messages > 0 {
            counts.peak_per_s = of.count_second(record.received_at_us.div_euclid(1_000_000));
        }
        of.count(day, &counts);
        if is_before && day == board_day {
            // What the log keeps of a refused message was charged, too.
            let refused: u64 = counts.refused.iter().sum();
            of.allowance.charge(counts.messages + refused, counts.bytes + kept_bytes);
        }
    }

    /// Takes what was counted since the last call, the gateway's refusals of tenants included, and judges quotas.
    pub(super) fn take(&mut self, now_us: i64) -> Taken {
        let day = day_of(now_us);
        self.day = self.day.max(day);
        let mut refusing = Vec::new();
        self.board.each(|tenant, allowance| {
            let refused = allowance.take_refused();
            if refused.iter().any(|count| *count > 0) {
                refusing.push((tenant.to_owned(), refused));
            }
        });
        for (tenant, refused) in refusing {
            self.tenant(&tenant).count(day, &Counts { refused, ..Counts::default() });
        }
        let (mut taken, board, mut has_freed) = (Taken::default(), self.board.clone(), false);
        for (tenant, of) in &mut self.tenants {
            of.turn(day);
            if of.is_erased {
                rows(tenant, of, &mut taken.rows);
                continue;
            }
            let refused = of.pending.get(&of.day).map_or([0; 13], |counts| counts.refused);
            let (used, quotas) = (of.used(refused), board.quotas(tenant));
            has_freed |= of.allowance.set_over(
                is_over(&quotas, &used, Quota::InferenceMsPerDay),
                is_over(&quotas, &used, Quota::StorageBytes),
            );
            notice(tenant, of, &quotas, &used, now_us, &mut taken.notices);
            rows(tenant, of, &mut taken.rows);
        }
        if has_freed {
            self.board.changed();
        }
        taken
    }
}

fn is_over(quotas: &Quotas, used: &Used, quota: Quota) -> bool {
    quotas.limit(quota).hard.is_some_and(|hard| used.by[quota as usize] >= hard)
}

fn notice(
    tenant: &str,
    of: &mut OfTenant,
    quotas: &Quotas,
    used: &Used,
    now_us: i64,
    into: &mut Vec<Notice>,
) {
    of.peak = 0;
    for (quota, level, used, allowed) in levels(quotas, used) {
        if of.noticed.insert((quota, level)) {
            let (tenant, day) = (tenant.to_owned(), of.day);
            into.push(Notice { tenant, day, quota, level, used, allowed, at_us: now_us });
        }
    }
}

fn rows(tenant: &str, of: &mut OfTenant, into: &mut Vec<DayRow>) {
    let now = (of.told.0.max(of.devices), of.told.1.max(of.storage_bytes()));
    if now != of.told {
        of.pending.entry(of.day).or_default();
        of.told = now;
    }
    for (day, counts) in std::mem::take(&mut of.pending) {
        let (devices, storage_bytes) = if day == of.day { now } else { (0, 0) };
        into.push(DayRow { tenant: tenant.to_owned(), day, counts, devices, storage_bytes });
    }
}

fn count_message(record: &LogRecord<'_>, counts: &mut Counts) {
    counts.messages = 1;
    counts.bytes = record.body.len() as u64;
    match UpClass::from_number(record.class) {
        // What does not decode is the store's to account for; its message and bytes count.
        Some(UpClass::Telemetry) => {
            counts.readings =
                Telemetry::decode(record.body).map_or(0, |telemetry| telemetry.readings.len() as u64);
        }
        Some(UpClass::Senml) => {
            counts.readings = senml::decode(record.body).map_or(0, |readings| readings.len() as u64);
        }
        Some(UpClass::Event) => {
            if let Ok(event) = Event::decode(record.body) {
                (counts.events, counts.event_bytes) = (1, counts.bytes);
                counts.inference_us = event.latency_us.into();
            }
        }
        _ => {}
    }
}
