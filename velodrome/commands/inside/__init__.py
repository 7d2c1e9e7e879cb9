"""The work of `velodrome look RUN`: one file for each family of topics, each giving readings, findings, charts and examples."""
