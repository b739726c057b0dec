"""The plan sweep: `command` says what it does, `search` which plans are measured, `outcome` what it leaves behind."""
