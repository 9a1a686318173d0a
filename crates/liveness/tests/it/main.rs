//! Tests of the detector and of the layer that it makes.
mod detection;
mod watched;
mod world;
