//! Reads the configuration files and certificates into checked settings.
