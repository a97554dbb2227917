"""The roadmap as an experiment: run every step, collect what came out, and report it as table, figure and page."""
