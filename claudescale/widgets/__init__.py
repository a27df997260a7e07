"""Choose before a run, follow one."""
