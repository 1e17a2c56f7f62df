//! The tables that both stores have, and their columns, to copy a CA from one store to another.

use crate::error::StoreError;

/// A table.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) name: &'static str,
    pub(crate) columns: &'static [Column],
    pub(crate) order: Order,
}

/// A column, and the type of its values.
#[derive(Debug)]
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
}

/// The type of the values in a column. A value may be absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Bytes,
    Number,
    Text,
    /// A number in SQLite.
    Truth,
}

/// The order of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// By the column `id`. A copy keeps these values, and goes on counting where the original does.
    Id,
    /// By the first column, because it does not matter when a row was made.
    Key,
    /// As they were made. SQLite numbers rows itself; PostgreSQL has a column `number` for this.
    Made,
}

/// The value of one column in one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Bytes(Option<Vec<u8>>),
    Number(Option<i64>),
    Text(Option<String>),
    Truth(Option<bool>),
}

/// The tables of a CA that is copied. Nobody can write to them meanwhile.
pub(crate) trait Source {
    /// How many rows a table has.
    fn count(&mut self, table: &Table) -> Result<u64, StoreError>;

    /// The last number that was given in the column `id`.
    fn last_id(&mut self, table: &Table) -> Result<i64, StoreError>;

    /// Reads every row, in order.
    fn rows(
        &mut self,
        table: &Table,
        each: &mut dyn FnMut(Vec<Value>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError>;

    /// Puts on record where the CA moved to. This counts once [`finish`](Self::finish) returns.
    fn leave(&mut self, place: &str) -> Result<(), StoreError>;

    /// Makes that durable: from then on, nobody can open the CA here or write to it.
    fn finish(self: Box<Self>) -> Result<(), StoreError>;
}

/// The tables that a CA is copied into. The CA is there once [`finish`](Self::finish) returns.
pub(crate) trait Sink {
    /// Deletes the rows that a new CA has.
    fn clear(&mut self, table: &Table) -> Result<(), StoreError>;

    /// Appends rows.
    fn add(&mut self, table: &Table, rows: &[Vec<Value>]) -> Result<(), StoreError>;

    /// Makes the column `id` count on after this number.
    fn set_last_id(&mut self, table: &Table, id: i64) -> Result<(), StoreError>;

    /// Makes all of it durable.
    fn finish(self: Box<Self>) -> Result<(), StoreError>;
}

const fn bytes(name: &'static str) -> Column {
    Column { name, kind: Kind::Bytes }
}

const fn number(name: &'static str) -> Column {
    Column { name, kind: Kind::Number }
}

const fn text(name: &'static str) -> Column {
    Column { name, kind: Kind::Text }
}

const fn truth(name: &'static str) -> Column {
    Column { name, kind: Kind::Truth }
}

const AUDIT: &[Column] = &[
    number("id"),
    number("time_us"),
    text("client"),
    text("action"),
    bytes("ek_id"),
    text("device_id"),
    truth("is_proven"),
    number("code"),
    text("detail"),
    number("duration_us"),
    number("number"),
    bytes("serial"),
    bytes("replaced"),
    text("event"),
    bytes("hash"),
];

/// Every table that is copied. The counters of revocations come last, because copying the other
/// tables changes them.
pub(crate) const TABLES: &[Table] = &[
    Table { name: "scope", order: Order::Key, columns: &[text("name")] },
    Table {
        name: "anchors",
        order: Order::Id,
        columns: &[
            number("id"),
            bytes("fingerprint"),
            bytes("certificate"),
            text("subject"),
            text("kind"),
            text("allowances"),
            number("not_after"),
            number("added_at"),
        ],
    },
    Table {
        name: "admission_groups",
        order: Order::Key,
        columns: &[number("place"), text("name"), text("answer"), text("rule")],
    },
    Table {
        name: "admission_version",
        order: Order::Key,
        columns: &[number("id"), number("number")],
    },
    Table {
        name: "places",
        order: Order::Key,
        columns: &[bytes("ek_id"), text("group_name"), number("taken_at")],
    },
    Table {
        name: "pending",
        order: Order::Key,
        columns: &[
            bytes("ek_id"),
            text("flow"),
            text("device_id"),
            number("first_seen"),
            number("last_seen"),
            text("facts"),
        ],
    },
    Table {
        name: "enrolments",
        order: Order::Key,
        columns: &[
            bytes("ek_id"),
            text("device_id"),
            text("recognised"),
            text("reprovision"),
            truth("legacy_dps_ek"),
            number("added_at"),
            text("tags"),
            truth("plain_srk"),
            text("facts"),
        ],
    },
    Table {
        name: "devices",
        order: Order::Key,
        columns: &[text("device_id"), bytes("ek_id"), text("assurance"), number("registered_at")],
    },
    Table {
        name: "former_eks",
        order: Order::Made,
        columns: &[text("device_id"), bytes("ek_id"), number("since"), number("until")],
    },
    Table { name: "disabled_eks", order: Order::Key, columns: &[bytes("ek_id"), number("since")] },
    Table {
        name: "certificates",
        order: Order::Made,
        columns: &[
            bytes("serial"),
            text("device_id"),
            bytes("ek_id"),
            bytes("ik_id"),
            text("assurance"),
            text("status"),
            number("not_before"),
            number("not_after"),
            number("issued_at"),
            number("confirm_by"),
            number("confirmed_at"),
            number("ended_at"),
            bytes("sha256"),
            bytes("der"),
        ],
    },
    Table {
        name: "identities",
        order: Order::Made,
        columns: &[text("name"), text("role"), text("publish"), text("subscribe")],
    },
    Table {
        name: "identity_certificates",
        order: Order::Made,
        columns: &[
            bytes("sha256"),
            text("name"),
            bytes("serial"),
            number("issued_at"),
            number("not_after"),
            number("revoked_at"),
        ],
    },
    Table {
        name: "shared_keys",
        order: Order::Key,
        columns: &[
            bytes("ek_id"),
            text("device_id"),
            text("assurance"),
            number("generation"),
            truth("is_used"),
            number("day"),
            number("today"),
            number("plain_srk_generation"),
            number("offered_at"),
        ],
    },
    Table { name: "audit_acts", order: Order::Key, columns: AUDIT },
    Table { name: "audit_changes", order: Order::Key, columns: AUDIT },
    Table { name: "audit_others", order: Order::Key, columns: AUDIT },
    Table {
        name: "audit_cuts",
        order: Order::Key,
        columns: &[text("chain"), number("id"), number("number"), bytes("hash")],
    },
    Table {
        name: "event_cursor",
        order: Order::Key,
        columns: &[
            number("acts"),
            number("changes"),
            number("others"),
            bytes("teller"),
            number("until"),
        ],
    },
    Table {
        name: "restores",
        order: Order::Key,
        columns: &[
            number("epoch"),
            number("backed_up_at"),
            number("restored_at"),
            number("resumed_at"),
        ],
    },
    Table { name: "clock", order: Order::Key, columns: &[number("latest"), number("accepted")] },
    Table {
        name: "configurations",
        order: Order::Key,
        columns: &[text("device_id"), number("revision"), bytes("document"), number("set_at")],
    },
    Table { name: "configuration_revisions", order: Order::Key, columns: &[number("newest")] },
    Table { name: "revocation_lists", order: Order::Key, columns: &[number("number")] },
    Table {
        name: "revocations",
        order: Order::Key,
        columns: &[number("connections"), number("list")],
    },
];

impl Table {
    /// The columns, as a statement lists them.
    pub(crate) fn list(&self) -> String {
        self.columns.iter().map(|column| column.name).collect::<Vec<_>>().join(", ")
    }

    /// Whether rows have a column `id` that goes on counting.
    pub(crate) fn counts(&self) -> bool {
        self.order == Order::Id
    }
}
