"""Does every hostile or malformed request get its one right answer, and does the server stay up and clean?"""
