//! Everything that is promised, through a real client, a real server and a real PostgreSQL.

mod decision;
mod listing;
mod world;
