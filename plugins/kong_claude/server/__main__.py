from kong_claude.server.cli import main

main()
