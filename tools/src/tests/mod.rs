//! Real data directories and replicas, made by the engine and the shipper, then damaged: every kind of damage has to be
//! found and named (I7), and what is whole has to be found clean.

mod compacting;
mod copying;
mod damage;
mod drills;
mod fixture;
mod inspecting;
mod past;
mod replicas;
mod running;
mod tiering;
