"""The promises of the bridge, put to the test by breaking things: `./tests/chaos/run --help`."""
